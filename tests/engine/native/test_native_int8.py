"""Weights in int8: what is rounded, what is refused, and how far the numbers may be off."""

import pytest
import torch

from tests.engine.conftest import MakeModel
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.native import executor as native_executor
from thoughtbubbles.engine.native.forward import NativeForward
from thoughtbubbles.engine.native.library import Library
from thoughtbubbles.engine.native.loading import Native, NativeUnavailableError
from thoughtbubbles.engine.portable.forward import CachedForward, Chunk, ForkTally
from thoughtbubbles.engine.sampling import finite_rows
from thoughtbubbles.model import Selection, Thoughtbubbles, Tokenizer

LARGEST = 127
TOLERANCE = 2e-3
"""Of log-probabilities: inputs are rounded too, to 13 bits at least."""


def make_cache(model: Thoughtbubbles) -> ForkCache:
    return ForkCache(model.config, max_tokens=64, total_bytes=1 << 23, page_size=4, like=model.transformer.wte.weight)


def make_int8(model: Thoughtbubbles, cache: ForkCache, library: Library, level: str) -> NativeForward:
    native = Native(library, level)
    return NativeForward(model, cache, ForkTally(), native=native, weights="int8")


@torch.no_grad()
def round_weights(model: Thoughtbubbles) -> None:
    """Round each output's weights of the layers to whole numbers up to 127, times a scale."""
    for block in model.blocks:
        for linear in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            scale = linear.weight.abs().amax(1, keepdim=True) / LARGEST
            linear.weight.copy_((linear.weight / scale).round() * scale)


@pytest.mark.numeric
@pytest.mark.parametrize("sizes", [{}, {"n_embd": 128, "n_head": 2}, {"n_embd": 42, "n_head": 7}], ids=str)
@torch.inference_mode()
def test_it_computes_with_the_rounded_weights(
    sizes: dict[str, int], library: Library, level: str, make_model: MakeModel
) -> None:
    """Without forks, since the last bit of a score may decide which of them survives."""
    model = make_model(fork_layers=(), **sizes)
    caches = [make_cache(model) for _ in range(2)]
    native, selection = make_int8(model, caches[0], library, level), Selection.of(model.config, "causal")
    round_weights(model)  # after the library has read them
    portable = CachedForward(model, caches[1], ForkTally())
    states = [[cache.open(selection) for _ in range(3)] for cache in caches]
    for counts in ([7, 1, 20], [1, 1, 1], [2, 1, 5]):
        given, wanted = (
            forward.extend([Chunk(list(range(n)), each, selection) for n, each in zip(counts, own, strict=True)])
            for forward, own in ((native, states[0]), (portable, states[1]))
        )
        log_p = [each.logits.log_softmax(1) for each in (given, wanted)]
        torch.testing.assert_close(*log_p, atol=TOLERANCE, rtol=0)


def test_the_layers_take_half_the_bytes(library: Library, level: str, make_model: MakeModel) -> None:
    model = make_model(n_embd=128, n_head=2).bfloat16().float()
    exact = NativeForward(model, make_cache(model), ForkTally(), native=Native(library, level))
    rounded = make_int8(model, make_cache(model), library, level)
    assert exact.weight_bytes - rounded.weight_bytes == 12 * 128 * 128 * model.config.n_layer


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("part", ["inputs", "weights"])
@torch.no_grad()
def test_what_overflows_is_broken(part: str, value: float, library: Library, level: str, make_model: MakeModel) -> None:
    """Whole numbers have neither NaN nor infinity: the scales do."""
    model = make_model(fork_layers=())
    (model.blocks[1].ln_2.bias if part == "inputs" else model.blocks[1].mlp.c_fc.weight[3])[2] = value
    cache, selection = make_cache(model), Selection.of(model.config, "causal")
    chunk = Chunk([1, 3, 2], cache.open(selection), selection)
    assert finite_rows(make_int8(model, cache, library, level).extend([chunk]).logits) == [False]


def test_a_row_of_zeros_and_an_output_of_zeros(library: Library, level: str, make_model: MakeModel) -> None:
    model = make_model(fork_layers=())
    with torch.no_grad():
        for block in model.blocks:
            block.ln_1.weight.zero_()
            block.mlp.c_fc.weight[5] = 0
    cache, selection = make_cache(model), Selection.of(model.config, "causal")
    extended = make_int8(model, cache, library, level).extend([Chunk([1, 2], cache.open(selection), selection)])
    assert extended.logits.isfinite().all()


def test_an_engine_serves_with_it_and_its_name_tells(
    library: Library, model: Thoughtbubbles, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    engine = Engine(model, tokenizer, EngineConfig(page_size=4, cache_bytes=1 << 23, weights="int8"))
    assert engine.executor.name.endswith(", int8)")
    params = SamplingParams(max_tokens=6, ignore_eos=True, seed=1)
    ids = [each.token_ids for each in engine.generate(prompts, params)]
    assert all(len(each) == 6 for each in ids)
    assert ids == [each.token_ids for each in engine.generate(prompts, params)]


def test_it_is_refused_where_another_executor_would_serve(
    model: Thoughtbubbles, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="weights 'int8' need the native executor; executor is 'portable'"):
        EngineConfig(weights="int8", executor="portable")
    with pytest.raises(ValueError, match="weights must be one of exact, int8, not 'int4'"):
        EngineConfig(weights="int4")  # type: ignore[arg-type]

    def load() -> Native:
        raise NativeUnavailableError("there is no compiler")

    monkeypatch.setattr(native_executor, "load_native", load)
    with pytest.raises(ValueError, match="weights 'int8' need the native executor, which is not available: there"):
        Engine(model, tokenizer, EngineConfig(cache_bytes=1 << 22, weights="int8"))


def test_a_model_in_bfloat16_is_refused(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="it computes in float32 on a CPU, not in bfloat16"):
        Engine(model.bfloat16(), tokenizer, EngineConfig(cache_bytes=1 << 22, weights="int8"))
