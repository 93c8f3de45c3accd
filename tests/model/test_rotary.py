"""Fractional positions and the rotation, by hand and by complex numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thoughtbubbles.model.rotary import fractions, rotate, rotation


def test_fractions_by_hand() -> None:
    token_index = torch.tensor([[0, 0, 0, 1, 2, 2], [0, 1, 1, 1, 1, 3]])
    wanted = [[1 / 3, 2 / 3, 1, 1, 1 / 2, 1], [1, 1 / 4, 1 / 2, 3 / 4, 1]]
    found = fractions(token_index, 3)
    torch.testing.assert_close(found[0], torch.tensor(wanted[0]))
    torch.testing.assert_close(found[1, :5], torch.tensor(wanted[1]))
    assert found.isfinite().all(), "padding may get any number, but must be one"


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=10))
def test_forks_share_the_step_to_their_original(counts: list[int]) -> None:
    token_index = torch.tensor([[t for t, q in enumerate(counts) for _ in range(q)]])
    wanted = torch.tensor([[j / q for q in counts for j in range(1, q + 1)]])
    torch.testing.assert_close(fractions(token_index, len(counts)), wanted)


@pytest.mark.numeric
def test_angles_by_hand() -> None:
    cos, sin = rotation(torch.tensor([[1.0, 7.25]]), head_width=6)
    assert cos.shape == sin.shape == (1, 1, 2, 3)
    for s, position in enumerate((1.0, 7.25)):
        for i in range(3):
            angle = position * 10000 ** (-2 * i / 6)
            assert cos[0, 0, s, i].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert sin[0, 0, s, i].item() == pytest.approx(math.sin(angle), abs=1e-6)


@pytest.mark.numeric
def test_halves_turn_against_each_other() -> None:
    """[x1, x2]·cos + [-x2, x1]·sin: channel i and channel i + H/2 are one complex number."""
    positions = torch.tensor([[1.0, 1.5, 3.0]])
    x = torch.randn(1, 2, 3, 8)
    frequencies = torch.tensor([10000.0 ** (-2 * i / 8) for i in range(4)])
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * positions[0, :, None] * frequencies)
    wanted = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(rotate(x, rotation(positions, 8)), wanted)


@pytest.mark.numeric
def test_a_quarter_turn() -> None:
    x = torch.tensor([[[[1.0, 2.0]]]])
    turned = rotate(x, rotation(torch.tensor([[math.pi / 2]]), 2))
    torch.testing.assert_close(turned, torch.tensor([[[[-2.0, 1.0]]]]))


@pytest.mark.numeric
def test_only_distance_matters() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16)
    products = [
        (rotate(q, rotation(torch.tensor([[at + 2.5]]), 16)) * rotate(k, rotation(torch.tensor([[at]]), 16))).sum()
        for at in (0.5, 3.0, 40.25)
    ]
    torch.testing.assert_close(products[1:], products[:1] * 2)
    apart = rotate(q, rotation(torch.tensor([[3.0]]), 16)) * rotate(k, rotation(torch.tensor([[0.0]]), 16))
    assert not torch.allclose(products[0], apart.sum(), atol=1e-3)


def test_half_precision_is_rotated_in_float32() -> None:
    x = torch.randn(1, 1, 4, 8, dtype=torch.bfloat16)
    by = rotation(torch.arange(4.0)[None], 8)
    assert by.cos.dtype == by.sin.dtype == torch.float32
    assert torch.equal(rotate(x, by), rotate(x.float(), by))
