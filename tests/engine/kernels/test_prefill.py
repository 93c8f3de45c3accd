"""Prefill with kernels: the streams and the candidates of the naive whole-sequence forward, however it is cut."""

from itertools import pairwise

import pytest
import torch

from engine.cached_forward import Chunk, ForkTally
from engine.fork_cache import ForkCache
from model import ModelConfig, Selection, Thoughtbubbles
from tests.engine.kernels.conftest import DEVICE, lively

PROMPTS = [list(range(30, 50)), [7] * 20]
CUTS = {"at once": [20], "in two": [7, 20], "in three": [1, 2, 20]}
SHAPES: dict[str, dict[str, object]] = {
    "as it ships": {},
    "layer 0 forks, no bias, tanh": {"fork_layers": (0, 2), "bias": False, "activation": "gelu_tanh"},
    "two heads of odd width": {"n_head": 2, "n_embd": 24},
    "copy-3": {"fork_layers": (), "max_block_size": 64, "copies": 3, "averaging": "rightmost"},
}


@pytest.mark.parametrize("cut", CUTS)
def test_however_it_is_cut(cut: str, small_model: Thoughtbubbles) -> None:
    check(small_model, CUTS[cut])


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str) -> None:
    sizes = {"vocab_size": 257, "block_size": 64, "max_block_size": 128, "n_layer": 3, "n_head": 1, "n_embd": 16,
             "fork_layers": (1, 2)}  # fmt: skip
    check(lively(Thoughtbubbles(ModelConfig.from_dict({**sizes, **SHAPES[shape]})).eval()), CUTS["in two"])


def check(model: Thoughtbubbles, cut: list[int]) -> None:
    from engine.device_forward import DeviceForward

    selection = Selection.of(model.config, "causal")
    wanted, _ = model.streams(torch.tensor(PROMPTS), selection)
    wanted_counts = [row[row < 20].bincount().tolist() for row in wanted.token_index]
    model = model.to(DEVICE)
    cache = ForkCache(model.config, max_tokens=32, total_bytes=1 << 20, page_size=4,
                      like=model.transformer.wte.weight.detach())  # fmt: skip
    forward = DeviceForward(model, cache, ForkTally())
    states = [cache.open(selection) for _ in PROMPTS]
    seen: list[list[torch.Tensor]] = [[], []]
    for start, end in pairwise([0, *cut]):
        with torch.inference_mode():
            streams = forward.extend([Chunk(ids[start:end], state, selection)
                                      for ids, state in zip(PROMPTS, states, strict=True)])  # fmt: skip
        counts = [sum(state.fork_counts(end - start)) for state in states]
        for each, x in zip(seen, streams.x[0].cpu().split(counts), strict=True):
            each.append(x)
    for row, (state, xs) in enumerate(zip(states, seen, strict=True)):
        assert state.fork_counts(20) == wanted_counts[row]
        torch.testing.assert_close(torch.cat(xs), wanted.x[row, : sum(wanted_counts[row])], atol=1e-4, rtol=1e-4)
