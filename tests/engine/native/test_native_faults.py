"""What a step does with numbers that overflow, and what it leaves behind where memory is short."""

import pytest
import torch

from tests.engine.conftest import MakeModel
from tests.engine.native.conftest import MakeForward
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.native.library import Library, Step
from thoughtbubbles.engine.portable.forward import Chunk
from thoughtbubbles.engine.sampling import finite_rows
from thoughtbubbles.model import Selection, Tokenizer


@pytest.mark.parametrize("length", [1, 5, 40])
@pytest.mark.parametrize("part", ["queries", "keys"])
@pytest.mark.parametrize("width", [32, 24])
@torch.no_grad()
def test_attention_that_overflows_is_broken(
    width: int, part: str, length: int, make_model: MakeModel, make_native: MakeForward
) -> None:
    """The maximum and exp once dropped NaN, so that all streams had the same weight and the logits were finite."""
    model = make_model(n_embd=width, n_head=2, fork_layers=())
    rows = slice(width) if part == "queries" else slice(width, 2 * width)
    model.blocks[1].attn.c_attn.weight[rows] *= torch.inf
    cache = ForkCache(model.config, max_tokens=64, total_bytes=1 << 22, page_size=4, like=model.transformer.wte.weight)
    forward, selection = make_native(model, cache), Selection.of(model.config, "causal")
    extended = forward.extend([Chunk(list(range(length)), cache.open(selection), selection)])
    assert finite_rows(extended.logits) == [False]


def test_a_step_without_memory_counts_no_forks(
    make_model: MakeModel, make_native: MakeForward, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    cache = ForkCache(model.config, max_tokens=64, total_bytes=1 << 22, page_size=4, like=model.transformer.wte.weight)
    forward, selection = make_native(model, cache), Selection.of(model.config, "causal")
    chunk = Chunk([1, 2, 3, 4, 5], cache.open(selection), selection)
    whole = Library.run

    def short(self: Library, handle: int, step: Step) -> None:
        whole(self, handle, step)
        raise MemoryError

    with monkeypatch.context() as failing:
        failing.setattr(Library, "run", short)
        with pytest.raises(MemoryError):
            forward.extend([chunk])
    streams = forward.extend([chunk]).counts.sum()
    assert forward.tally.forks.total() - forward.tally.deletions.total() == streams - 5
    assert forward.tally.forks.total() > 0


@pytest.mark.numeric
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("settings", [{"page_size": 1}, {"max_batch_size": 1}, {"max_batch_size": 10}], ids=str)
@pytest.mark.parametrize(
    "sizes", [{"vocab_size": 259}, {"n_embd": 42, "n_head": 7}, {"n_embd": 40, "n_head": 1}], ids=str
)
def test_odd_sizes(
    sizes: dict[str, int],
    settings: dict[str, int],
    make_model: MakeModel,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
) -> None:
    """Sizes that no vector divides, pages of one stream, a batch of one and a full one; no new token, too."""
    model = make_model(**sizes)
    outputs = []
    for executor in ("native", "portable"):
        config = EngineConfig(**{"page_size": 4, "cache_bytes": 1 << 23, "executor": executor, **settings})  # type: ignore[arg-type]
        engine = Engine(model, tokenizer, config)
        drawn = engine.generate(prompts[:10], SamplingParams(max_tokens=5, temperature=0, ignore_eos=True))
        scored = engine.generate(prompts[:10], SamplingParams(max_tokens=0, return_fork_counts=True))
        outputs.append(([each.token_ids for each in drawn], [each.events[-1].prompt for each in scored]))
    assert outputs[0] == outputs[1]
