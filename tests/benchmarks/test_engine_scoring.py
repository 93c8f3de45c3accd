"""The measurement of scoring asks for what it says."""

from benchmarks.engine import scoring
from tests.engine.conftest import lively_model
from thoughtbubbles.engine import Engine, EngineConfig
from thoughtbubbles.model import Tokenizer


def test_prompts_are_scored_or_prefilled_alone() -> None:
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, "bytes")
    engine = Engine(lively_model(), tokenizer, EngineConfig(max_batch_size=2, cache_bytes=1 << 22))
    prompts = [[1, 2, 3], [3, 4]]
    [whole, other] = scoring.score(engine, prompts, 2)
    assert whole < 0 > other
    assert scoring.score(engine, [[1, 2]], 0)[0] > whole
    assert scoring.score(engine, prompts, None) == [0.0, 0.0]
    assert engine.stats().generation_tokens_total == 5
