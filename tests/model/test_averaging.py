"""The three output averagings, by hand: two tokens, the first with a fork."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from thoughtbubbles.model import Streams
from thoughtbubbles.model.averaging import logit_average, residual_average, rightmost

X = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[7.0, 8.0], [9.0, 9.0], [9.0, 9.0]]])
SCORE = torch.tensor([[math.log(0.5), math.log(0.25), math.log(0.125)], [math.log(0.5), 0.0, 0.0]])
TOKEN_INDEX = torch.tensor([[0, 0, 1], [0, 2, 2]])  # the second row is one token, then padding


def streams(x: Tensor = X, score: Tensor = SCORE) -> Streams:
    return Streams(x, score, TOKEN_INDEX, 2)


def test_residual_sums_without_dividing() -> None:
    wanted = [[[0.5 * 1 + 0.25 * 3, 0.5 * 2 + 0.25 * 4], [0.625, 0.75]], [[3.5, 4.0], [0.0, 0.0]]]
    torch.testing.assert_close(residual_average(streams()), torch.tensor(wanted))


def test_residual_sums_in_float32() -> None:
    x = torch.randn(2, 3, 2).bfloat16()
    averaged = residual_average(streams(x))
    assert averaged.dtype == torch.float32
    assert torch.equal(averaged, residual_average(streams(x.float())))


@pytest.mark.numeric
def test_logit_mixes_distributions() -> None:
    logits = torch.tensor([[[0.0, math.log(3)], [math.log(4), 0.0], [0.0, 0.0]], [[0.0, math.log(9)]] * 3])
    mixed = logit_average(streams(), logits).exp()
    first = [(2 * 0.25 + 1 * 0.8) / 3, (2 * 0.75 + 1 * 0.2) / 3]  # weights 0.5 and 0.25, divided by their sum
    torch.testing.assert_close(mixed, torch.tensor([[first, [0.5, 0.5]], [[0.1, 0.9], [0.0, 0.0]]]))


@pytest.mark.numeric
def test_logit_holds_where_every_weight_underflows() -> None:
    """P = exp(-200) is 0 in float32; the mixture is made in log space."""
    logits = torch.randn(2, 3, 5)
    mixed = logit_average(streams(score=SCORE - 200), logits)
    torch.testing.assert_close(mixed, logit_average(streams(), logits), atol=1e-4, rtol=0)


def test_logit_mixes_in_float32() -> None:
    logits = torch.randn(2, 3, 5).bfloat16()
    mixed = logit_average(streams(), logits)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, logit_average(streams(), logits.float()))


def test_rightmost_is_the_original_unweighted() -> None:
    found = rightmost(streams())
    assert torch.equal(found[0], torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    assert torch.equal(found[1, 0], torch.tensor([7.0, 8.0]))


@pytest.mark.parametrize("averaging", [residual_average, rightmost, lambda each: logit_average(each, each.x)])
def test_padding_neither_counts_nor_learns(averaging: Callable[[Streams], Tensor]) -> None:
    x, score = X.clone().requires_grad_(), SCORE.clone().requires_grad_()
    result = averaging(streams(x, score))
    changed = averaging(streams(torch.where(TOKEN_INDEX[:, :, None] == 2, -1e3, X), SCORE))
    real = torch.tensor([[True, True], [True, False]])
    assert torch.equal(result[real], changed[real])

    (result[real] * torch.arange(6.0).view(3, 2)).sum().backward()
    for leaf in (x, score):
        if leaf.grad is not None:  # the rightmost has no use for scores
            assert leaf.grad.isfinite().all()
            assert (leaf.grad[TOKEN_INDEX == 2] == 0).all()
    assert x.grad is not None
    assert (x.grad != 0).any()
