"""Prefill with kernels: the streams and the candidates of the naive whole-sequence forward, however it is cut."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from engine.cached_forward import Chunk, ForkTally
from engine.fork_cache import ForkCache
from model import ModelConfig, Selection, Thoughtbubbles
from tests.engine.kernels.conftest import DEVICE, lively

PROMPTS = [list(range(30, 50)), [7] * 13, [9, 4, 4, 4]]
CUTS = {"at once": [20], "in two": [7, 20], "in three": [1, 2, 20]}
SHAPES: dict[str, dict[str, object]] = {
    "as it ships": {},
    "layer 0 forks, no bias, tanh": {"fork_layers": (0, 2), "bias": False, "activation": "gelu_tanh"},
    "two heads of odd width": {"n_head": 2, "n_embd": 24},
}


@pytest.mark.parametrize("cut", CUTS)
def test_however_it_is_cut(cut: str, small_model: Thoughtbubbles) -> None:
    check(small_model, CUTS[cut])


def test_inputs_shared_out(small_model: Thoughtbubbles, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are in bfloat16: what is left for later is added before anybody looks, also at the end of a segment."""
    from engine.kernels import linear
    from engine.kernels.tiles import Tiles

    monkeypatch.setattr(linear, "tiles_of", lambda x, outputs, _: Tiles(16, 32, 32, 4, 2, 1 + (outputs <= x.shape[1])))
    check(small_model, CUTS["at once"])


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str) -> None:
    sizes = {"vocab_size": 257, "block_size": 64, "max_block_size": 128, "n_layer": 3, "n_head": 1, "n_embd": 16,
             "fork_layers": (1, 2)}  # fmt: skip
    check(lively(Thoughtbubbles(ModelConfig.from_dict({**sizes, **SHAPES[shape]})).eval()), CUTS["in two"])


def check(model: Thoughtbubbles, cut: list[int]) -> None:
    """Prompts of unlike lengths, so that the shorter one is whole before the longer one is."""
    from engine.device_forward import DeviceForward

    selection = Selection.of(model.config, "causal")
    wanted = [model.streams(torch.tensor([ids]), selection)[0] for ids in PROMPTS]
    model = model.to(DEVICE)
    cache = ForkCache(model.config, max_tokens=32, total_bytes=1 << 20, page_size=4,
                      like=model.transformer.wte.weight.detach())  # fmt: skip
    forward = DeviceForward(model, cache, ForkTally())
    states = [cache.open(selection) for _ in PROMPTS]
    seen: list[list[torch.Tensor]] = [[] for _ in PROMPTS]
    for start, end in pairwise([0, *cut]):
        going = [i for i, ids in enumerate(PROMPTS) if len(ids) > start]
        with torch.inference_mode():
            streams = forward.extend([Chunk(PROMPTS[i][start:end], states[i], selection) for i in going])
        counts = [sum(states[i].fork_counts(len(PROMPTS[i][start:end]))) for i in going]
        assert int((streams.token_index < streams.tokens).sum()) == sum(counts)
        for i, x in zip(going, streams.x[0, : sum(counts)].cpu().split(counts), strict=True):
            seen[i].append(x)
    for ids, state, xs, one in zip(PROMPTS, states, seen, wanted, strict=True):
        live = one.token_index[0] < len(ids)
        assert state.fork_counts(len(ids)) == one.token_index[0][live].bincount().tolist()
        torch.testing.assert_close(torch.cat(xs), one.x[0][live], atol=1e-4, rtol=1e-4)


def test_models_that_the_kernels_do_not_compute_are_known(small_model: Thoughtbubbles) -> None:
    from engine.decode_step import decodes_alone
    from engine.device_layers import has_kernels

    config = small_model.config
    assert has_kernels(config)
    assert decodes_alone(config)
    copies = {"fork_layers": (), "max_block_size": 64, "copies": 3, "averaging": "rightmost"}
    for change in (copies, {"residual_attenuation": False}, {"n_layer": 7, "fork_layers": (1, 2, 3, 4, 5, 6)}):
        assert not has_kernels(replace(config, **change))  # type: ignore[arg-type]
    assert not decodes_alone(replace(config, averaging="logit"))
