"""The fused loss against `next_token_loss`: value, every gradient, one graph for the compiler."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model import ModelConfig, Thoughtbubbles
from tests.training.kernels.harness import DEVICE
from training.data.loader import PADDING
from training.fused import Fusions, fused_loss
from training.step import NextTokenLoss, next_token_loss

MODEL = ModelConfig(vocab_size=97, block_size=5, max_block_size=10, n_layer=3, n_head=2, n_embd=16, fork_layers=(1, 2))
ALL = Fusions(heads="triton", norm=True, gelu=True, head=True, head_rows=8, forks=True, fork_scores=True)


def lively(config: ModelConfig) -> Thoughtbubbles:
    """Forks that live and die, and no weight that does nothing."""
    torch.manual_seed(0)
    model = Thoughtbubbles(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("forking_score", "fork_embedding", "wte")):
                parameter.normal_(std=0.5)
            elif name.endswith("bias") or "ln_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(DEVICE)


def windows(padded: bool = False) -> Tensor:
    ids = torch.randint(97, (2, 6), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    if padded:
        ids[1, 3:] = PADDING
    return ids


def learned(model: Thoughtbubbles, loss: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(model: Thoughtbubbles, fusions: Fusions, *, ratio: float | None = None, padded: bool = False) -> None:
    ids = windows(padded)
    want, gradients = learned(model, next_token_loss(model, ids, ratio, padded=padded))
    got, others = learned(model, fused_loss(model, ids, ratio, None, padded=padded, fusions=fusions))
    torch.testing.assert_close(got, want)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (others[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-9, name


@pytest.mark.parametrize("fusions", [Fusions(), Fusions(heads="table"), Fusions(forks=True), ALL], ids=str)
def test_fusions_leave_loss_and_gradients_as_they_are(fusions: Fusions) -> None:
    assert_equal(lively(MODEL), fusions)


@pytest.mark.parametrize(
    "settings",
    [
        {"fork_layers": (), "max_block_size": 5, "bias": False, "activation": "gelu_tanh"},
        {"averaging": "rightmost", "residual_attenuation": False},
        {"norm_before_averaging": True, "value_attenuation": False},
        {"fork_layers": (), "max_block_size": 5, "copies": 2, "averaging": "rightmost"},
    ],
    ids=str,
)
def test_every_kind_of_model(settings: dict[str, object]) -> None:
    assert_equal(lively(replace(MODEL, **settings)), ALL)  # type: ignore[arg-type]


def test_padding_and_ratio() -> None:
    model = lively(MODEL)
    assert_equal(model, ALL, padded=True)
    assert_equal(model, ALL, ratio=1.5)


def test_streams_in_bfloat16_learn_nearly_the_same() -> None:
    model = lively(replace(MODEL, fork_layers=(), max_block_size=5))  # a fork decided otherwise would be no rounding
    want, gradients = learned(model, next_token_loss(model, windows()))
    with torch.autocast(DEVICE.type, torch.bfloat16):
        loss = fused_loss(model, windows(), None, None, padded=False, fusions=replace(ALL, residual="bfloat16"))
    got, others = learned(model, loss)
    torch.testing.assert_close(got, want, rtol=5e-3, atol=0)
    for name, gradient in gradients.items():
        assert (others[name] - gradient).norm() <= 0.05 * gradient.norm(), name


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler does that itself
@pytest.mark.parametrize("fusions", [replace(ALL, residual="bfloat16"), Fusions(heads="table", forks=True)])
def test_the_fused_loss_is_one_graph(fusions: Fusions) -> None:
    """With both ways through autograd's tracing, which breaks on what it cannot see through."""
    model = lively(MODEL)
    loss = NextTokenLoss(model, fusions=fusions)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=False)
    found = []
    for way in (loss, compiled):
        with torch.autocast(DEVICE.type, torch.bfloat16):
            value = way(windows()[:1, :4], None, None)
        found.append(learned(model, value))
    torch.testing.assert_close(found[1][0], found[0][0])
    torch.testing.assert_close(found[1][1], found[0][1])


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match="heads must be one of plain, table, triton"):
        Fusions(heads="flash")  # type: ignore[arg-type]
