"""Which parameters decay, and which Muon steers."""

from dataclasses import replace

import pytest
import torch

from tests.training.harness import MODEL, TRAIN
from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.training.config import OptimizerName
from thoughtbubbles.training.optimizer import build_optimizers, set_learning_rate

both = pytest.mark.parametrize("name", ["adamw", "muon"])


@both
def test_every_parameter_is_in_one_group_and_only_matrices_decay(name: OptimizerName) -> None:
    model = Thoughtbubbles(MODEL)
    groups = [g for o in build_optimizers(model, replace(TRAIN, optimizer=name)) for g in o.param_groups]
    decayed = {id(p) for group in groups for p in group["params"] if group["weight_decay"]}
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, model.parameters()))
    for parameter_name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.dim() == 2), parameter_name


def test_muon_steers_the_matrices_of_the_layers() -> None:
    model = Thoughtbubbles(MODEL)
    _, muon = build_optimizers(model, replace(TRAIN, optimizer="muon"))
    steered = {id(p) for group in muon.param_groups for p in group["params"]}
    names = {name.split(".", 3)[-1] for name, p in model.named_parameters() if id(p) in steered}
    assert names == {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}


@both
def test_decay_and_learning_rate_are_those_asked_for(name: OptimizerName) -> None:
    """Without a gradient AdamW and Muon do nothing but decay: p · (1 - rate · decay)."""
    model = Thoughtbubbles(MODEL)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizers = build_optimizers(model, replace(TRAIN, optimizer=name, weight_decay=0.5))
    set_learning_rate(optimizers, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    for n, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[n] * (0.95 if parameter.dim() == 2 else 1.0))
