"""The measurement of neighbours measures what it says."""

from itertools import count
from types import SimpleNamespace

import pytest

from benchmarks.engine import neighbours
from benchmarks.engine.neighbours import Load, Watch
from tests.engine.conftest import lively_model
from thoughtbubbles.engine import Engine, EngineConfig
from thoughtbubbles.model import Tokenizer

LOAD = Load(requests=2, context=5, prompt=9, tokens=6, others=2)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Its clock is held: on a busy machine a piece of the other may take so long that its neighbours end meanwhile."""
    clock = count()
    monkeypatch.setattr("thoughtbubbles.engine.revising.executor.time", SimpleNamespace(monotonic=lambda: next(clock)))
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, "bytes")
    config = EngineConfig(max_batch_size=3, cache_bytes=1 << 24, prefix_caching=False)
    return Engine(lively_model(block_size=256, max_block_size=512), tokenizer, config)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("kind", ["cached", "fork_bias", "dynamic", "fixed"])
def test_a_row_is_of_one_other_request(engine: Engine, kind: str, phase: str) -> None:
    seconds = count()
    row = neighbours.measure(Watch(engine, lambda: float(next(seconds))), LOAD, kind, phase)
    assert row.others >= (LOAD.others if phase == "decode" else 1)
    assert len(row.gaps) >= (LOAD.tokens if phase == "decode" else 1)
    assert not engine.has_work
    prompts = LOAD.requests * neighbours.CACHED_PROMPT + (LOAD.context if phase == "decode" else LOAD.prompt)
    assert engine.stats().prompt_tokens_total == prompts
    assert (row.alone, row.beside) == (LOAD.requests, LOAD.requests)  # a step a second


def test_beside_none_they_stay_alone(engine: Engine) -> None:
    row = neighbours.measure(Watch(engine), LOAD, "none", "decode")
    assert (row.others, len(row.gaps)) == (0, LOAD.tokens)
    assert engine.stats().prompt_tokens_total == LOAD.requests * neighbours.CACHED_PROMPT


def test_a_row_is_not_of_fewer_cached_requests(engine: Engine) -> None:
    with pytest.raises(ValueError, match="measure fewer"):
        neighbours.measure(Watch(engine), Load(requests=2, context=5, prompt=9, tokens=90), "none", "decode")
