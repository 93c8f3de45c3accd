"""Requests without pages on a device: the kernels give what the naive whole-sequence forward gives."""

import random

import pytest
import torch

from tests.engine.kernels.conftest import DEVICE, lively
from thoughtbubbles.engine.revising.forward import RevisingForward
from thoughtbubbles.engine.revising.state import RevisableState
from thoughtbubbles.model import ForkBias, ModelConfig, Selection, Thoughtbubbles
from thoughtbubbles.model.interventions import within

SHAPES: dict[str, dict[str, object]] = {
    "as it ships": {},
    "layer 0 forks, no bias, tanh": {"fork_layers": (0, 2), "bias": False, "activation": "gelu_tanh"},
    "two heads of odd width": {"n_head": 2, "n_embd": 24},
    "mixture of softmaxes": {"averaging": "logit"},
    "regular": {"fork_layers": (), "max_block_size": 64},
}
LENGTHS = (5, 6, 7, 8, 17, 18, 19)
TOLERANCE = 3e-5
"""As in tests/engine/test_dynamic.py."""


def make(**settings: object) -> Thoughtbubbles:
    torch.manual_seed(0)
    shape = {"vocab_size": 257, "block_size": 64, "max_block_size": 128, "n_layer": 3, "n_head": 1, "n_embd": 16,
             "fork_layers": (1, 2)}  # fmt: skip
    return lively(Thoughtbubbles(ModelConfig.from_dict({**shape, **settings})).eval()).to(DEVICE)


@pytest.mark.sample(2)
@pytest.mark.parametrize("rule", ["dynamic", "fixed", "causal"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_growing_sequences_are_the_whole_forwards(shape: str, rule: str) -> None:
    """Two requests of different ratios and lengths share their steps, and one has interventions."""
    from thoughtbubbles.engine.cuda.buffered import BufferedLayers

    model, dice = make(**SHAPES[shape]), random.Random(shape)
    layers = model.config.fork_layers
    biases = [ForkBias(layer=layers[-1], position=3, bias=-2.0)] if layers else []
    forward, like = RevisingForward(model, BufferedLayers(model, page_size=4)), model.transformer.wte.weight
    selections = [Selection.of(model.config, rule, ratio) for ratio in ((2, 1.3) if layers else (1, 1))]
    states = [RevisableState(model.config, selection, max(LENGTHS) + 1, like, given)
              for selection, given in zip(selections, ([], biases), strict=True)]  # fmt: skip
    texts = [[dice.randrange(257) for _ in range(max(LENGTHS) + 1)] for _ in states]
    for length in LENGTHS:
        present = [texts[0][:length], texts[1][: length + 1]]
        for state, ids, revised in zip(states, present, forward.extend(states, present), strict=True):
            intervene = within(state.biases, len(ids))
            streams, forks = model.streams(torch.tensor([ids], device=DEVICE), state.selection, intervene=intervene)
            for segment, fork in zip(state.segments[1:], forks, strict=True):
                assert torch.equal(segment.candidate[0], fork.candidate[fork.token_index < len(ids)]), "without padding"
            torch.testing.assert_close(revised.logits, model.readout(streams)[0, -1], atol=TOLERANCE, rtol=0)
            assert revised.streams == int((streams.token_index < len(ids)).sum())


@torch.inference_mode()
def test_preparing_changes_nothing() -> None:
    """It runs every kernel, also for more streams than were ever computed before; few here, the interpreter is slow."""
    from thoughtbubbles.engine.cuda import buffered

    model = make()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffered, "COMPILED_ROWS", 16)
        buffered.BufferedLayers(model, page_size=4).prepare()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
