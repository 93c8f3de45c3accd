"""Decode of few rows, whose LayerNorm is part of the products that follow."""

from typing import Any

import pytest
import torch

from tests.engine.kernels.conftest import DEVICE, MakeEngine, attentive
from thoughtbubbles.engine import SamplingParams
from thoughtbubbles.engine.cuda.kernels import tiles
from thoughtbubbles.model import Thoughtbubbles


@pytest.mark.parametrize("dtype", [torch.half, torch.float32])
def test_few_rows_decode_as_many(
    dtype: torch.dtype, small_model: Thoughtbubbles, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 to the last bit, for there no rows are few."""
    from thoughtbubbles.engine.cuda import layers

    model = _telling(attentive(small_model)).to(dtype)
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=0, ignore_eos=True)
    told, launches = [], []
    for most in (tiles.FEW_ROWS, 0):
        monkeypatch.setattr(tiles, "FEW_ROWS", most)
        seen = _count(monkeypatch, layers, "normalise")
        [completion] = make_engine(model, max_batch_size=1).generate([[5, 9, 3]], params)
        told.append(completion)
        launches.append(len(seen))
    few, many = told
    assert few.token_ids == many.token_ids
    logprobs = [torch.tensor([event.logprob for event in each.events], device=DEVICE) for each in told]
    atol = 0.0 if dtype == torch.float32 else 5e-3
    torch.testing.assert_close(*logprobs, atol=atol, rtol=0)
    if dtype == torch.float32:
        assert launches[0] == launches[1]
    else:
        assert launches[0] < launches[1], "prefill, which has kernels on a device, normalises in both"


@torch.no_grad()
def _telling(model: Thoughtbubbles) -> Thoughtbubbles:
    """Norms that differ, and layers that matter: with the wrong norm logits move."""
    for name, parameter in model.named_parameters():
        if ".ln_" in name:
            parameter.normal_(1, 0.5)
        elif ".mlp." in name:
            parameter.mul_(20)
    return model


def _count(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[None]:  # noqa: ANN401 - any module
    """Have calls of a function append to the list."""
    called, function = list[None](), getattr(module, name)

    def counted(**given: object) -> object:
        called.append(None)
        return function(**given)

    monkeypatch.setattr(module, name, counted)
    return called
