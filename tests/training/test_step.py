"""One step: a single graph for the compiler, and bfloat16 in the matrix products alone."""

from dataclasses import replace

import pytest
import torch

from tests.training.harness import MODEL, TRAIN, VOCAB
from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.training.config import TrainConfig
from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.step import NextTokenLoss, TrainStep, _prepare, next_token_loss

CPU = Ranks(device=torch.device("cpu"))
WINDOWS = torch.randint(VOCAB, (2, MODEL.block_size + 1), generator=torch.Generator().manual_seed(0))


@pytest.mark.numeric
def test_the_loss_is_one_graph() -> None:
    """A graph break would slow training down, and no other test would fail."""
    model = Thoughtbubbles(MODEL)
    compiled = torch.compile(next_token_loss, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(model, WINDOWS), next_token_loss(model, WINDOWS))


@pytest.mark.numeric
def test_the_loss_is_the_mean_over_all_targets() -> None:
    model = Thoughtbubbles(MODEL)
    log_p = model(WINDOWS[:, :-1], rule="blockwise").log_softmax(-1)
    picked = log_p.gather(2, WINDOWS[:, 1:, None])
    torch.testing.assert_close(next_token_loss(model, WINDOWS), -picked.mean())


@pytest.mark.numeric
def test_bfloat16_stays_in_the_matrix_products() -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = Thoughtbubbles(MODEL)
        config = replace(TRAIN, precision=precision, accumulation=1, dropout=0.0)
        losses[precision] = float(TrainStep(model, config, CPU)(0, [WINDOWS]))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=1e-3)


def gradients(config: TrainConfig) -> dict[str, torch.Tensor]:
    """Of the first step, as AdamW remembers them; the clipping is far away."""
    torch.manual_seed(0)
    model = Thoughtbubbles(MODEL, dropout=config.dropout)
    learn = TrainStep(model, replace(config, accumulation=1, clip=1e9), CPU)
    learn(0, [WINDOWS])
    moments = learn.optimizers[0].state
    return {name: moments[p]["exp_avg"] for name, p in model.named_parameters()}


@pytest.mark.numeric
def test_recomputed_activations_give_the_same_gradients() -> None:
    """With dropout and noise, whose draws have to be repeated too."""
    config = replace(TRAIN, dropout=0.2, fork_noise=1.0)
    kept, recomputed = gradients(config), gradients(replace(config, recompute=True))
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_recomputing_noise_and_ratio_stay_one_graph() -> None:
    model = Thoughtbubbles(MODEL)
    loss = _prepare(model, replace(TRAIN, recompute=True), CPU)
    assert isinstance(loss, NextTokenLoss)
    compiled = torch.compile(loss, backend="eager", fullgraph=True, dynamic=False)
    assert compiled(WINDOWS, 1.25, torch.tensor(0.1)).isfinite()


def test_noise_and_ratio_reach_the_forks() -> None:
    plain = gradients(replace(TRAIN, dropout=0.0))
    for setting in ({"fork_noise": 5.0}, {"random_ratio": True}):
        other = gradients(replace(TRAIN, dropout=0.0, **setting))
        assert any(not torch.equal(other[name], gradient) for name, gradient in plain.items()), setting


def test_chance_is_a_function_of_seed_and_step() -> None:
    config = replace(TRAIN, dropout=0.5)
    torch.manual_seed(5)
    one = gradients(config)
    torch.manual_seed(6)
    two = gradients(config)
    assert all(torch.equal(two[name], gradient) for name, gradient in one.items())
