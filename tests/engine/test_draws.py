"""What is drawn is what the distribution says: no hash, temperature or restriction makes an impossible token win."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.draws import EXTREME_BITS, deviation, seed_of, uneven_logits
from thoughtbubbles.engine import InvalidRequest, SamplingParams
from thoughtbubbles.engine.sampling import Draw, ban, gumbel, penalise, sample

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
V, CHOSEN, POSITION = 300, 123, 7
"""CHOSEN is the token whose hash is extreme, and which must not be drawn."""


def logits() -> Tensor:
    values = torch.randn(V, generator=torch.Generator().manual_seed(1))
    values[CHOSEN] = -1.0
    return values


def draws(params: SamplingParams, values: Tensor, bits: int) -> int:
    seed = seed_of(bits, POSITION, CHOSEN)
    return int(sample(values[None], Draw.of([params], [seed], [POSITION], torch.device("cpu"))))


def count(values: Tensor, draws: int, at_once: int) -> Tensor:
    """How often each token is drawn from logits (V,) under seed 1 and the first so many positions."""
    counts, rows = torch.zeros(len(values), dtype=torch.int64), values.to(DEVICE).expand(at_once, -1)
    ones, zeros = torch.ones(at_once, device=DEVICE), torch.zeros(at_once, dtype=torch.int64, device=DEVICE)
    for first in range(0, draws, at_once):
        positions = torch.arange(first, first + at_once, device=DEVICE)
        draw = Draw(ones, top_k=zeros, top_p=ones, log_min_p=zeros - torch.inf, seed=zeros + 1,
                    position=positions)  # fmt: skip
        counts += sample(rows, draw).bincount(minlength=len(values)).cpu()
    return counts


@pytest.mark.parametrize("bits", EXTREME_BITS)
def test_seeds_are_made_for_a_hash_and_its_noise_is_finite(bits: int) -> None:
    noise = gumbel(torch.tensor([seed_of(bits, POSITION, CHOSEN)]), torch.tensor([POSITION]), V)
    assert noise.isfinite().all()
    signed = bits - (1 << 64) if bits >> 63 else bits
    u = min((abs(signed >> 11) + 0.5) * 2.0**-52, 1 - 2.0**-24)
    assert noise[0, CHOSEN].item() == pytest.approx(-math.log(-math.log1p(-u)), rel=1e-5)


@pytest.mark.parametrize("bits", EXTREME_BITS)
@pytest.mark.parametrize(
    "restricted",
    [{"top_k": 1}, {"top_k": 3}, {"top_p": 0.05}, {"min_p": 0.9}, {"top_p": 1e-46}, {"temperature": 1e-38},
     {"temperature": 0}, {"logit_bias": {CHOSEN: -100}}, {"temperature": 1e-5}],
)  # fmt: skip
def test_an_extreme_hash_draws_no_token_that_is_left_out(bits: int, restricted: dict[str, object]) -> None:
    params = SamplingParams(**restricted)  # type: ignore[arg-type]
    assert draws(params, penalise(logits(), params, [0], []), bits) != CHOSEN


@pytest.mark.parametrize("bits", EXTREME_BITS)
def test_an_extreme_hash_draws_no_banned_and_no_padded_token(bits: int) -> None:
    banned = ban(logits(), [CHOSEN])  # what min_tokens bans, and what only pads the embedding, is at -inf
    assert draws(SamplingParams(), banned, bits) != CHOSEN
    assert draws(SamplingParams(top_p=0.999, min_p=1e-9), banned, bits) != CHOSEN


@pytest.mark.parametrize("bits", EXTREME_BITS)
def test_a_greedy_row_takes_the_likeliest_whatever_its_neighbours_draw(bits: int) -> None:
    params = [SamplingParams(temperature=0), SamplingParams(), SamplingParams(temperature=0, top_p=0.5)]
    seeds = [seed_of(bits, POSITION, CHOSEN)] * 3
    tokens = sample(logits().expand(3, -1), Draw.of(params, seeds, [POSITION] * 3, torch.device("cpu")))
    assert tokens[[0, 2]].tolist() == [int(logits().argmax())] * 2


@pytest.mark.parametrize("extreme", [{"temperature": 1e-38}, {"temperature": 1e-300}, {"top_p": 1e-46}, {"top_k": 1},
                                     {"min_p": 1.0}, {"temperature": 1e-5}])  # fmt: skip
def test_extremes_are_greedy(extreme: dict[str, float]) -> None:
    params = SamplingParams(**extreme)  # type: ignore[arg-type]
    draw = Draw.of([params] * 50, list(range(50)), [0] * 50, torch.device("cpu"))
    values = torch.randn(50, V) * 10
    assert torch.equal(sample(values, draw), values.argmax(1))


@pytest.mark.parametrize("penalty", [1e-300, 1e-46, 1e300])
@pytest.mark.parametrize("restricted", [{}, {"top_p": 0.9}])
def test_an_extreme_repetition_penalty_leaves_logits_finite(penalty: float, restricted: dict[str, float]) -> None:
    params = SamplingParams(repetition_penalty=penalty, **restricted)  # type: ignore[arg-type]
    values = logits()
    values[[3, 4, 5]] = torch.tensor([2.0, 0.0, -2.0])
    adjusted = penalise(values, params, [3, 4, 5], [])
    assert adjusted.isfinite().all()
    drawn = draws(params, adjusted, 0)
    assert drawn == 3 if penalty < 1 else drawn != 5


@pytest.mark.parametrize(
    ("settings", "given"), [({"min_p": 1.0000001}, "1.0000001"), ({"logit_bias": {3: 100.0000001}}, "100.0000001")]
)
def test_a_refused_number_is_not_rounded_to_an_allowed_one(settings: dict[str, Any], given: str) -> None:
    with pytest.raises(InvalidRequest, match=f"not {given}$"):
        SamplingParams(**settings)


@pytest.mark.parametrize("bias", [math.nan, math.inf, -math.inf, 100.5])
def test_a_bias_that_is_out_of_range_is_refused(bias: float) -> None:
    with pytest.raises(InvalidRequest, match="logit_bias of token 3") as caught:
        SamplingParams(logit_bias={3: bias})
    assert caught.value.param == "logit_bias"


def test_a_nan_is_not_drawn_in_silence() -> None:
    values = logits()
    values[5] = math.nan
    with pytest.raises(AssertionError, match="finite"):
        draws(SamplingParams(), values, 0)


@pytest.mark.parametrize(("vocabulary", "draws"), [(8192, 16_000), pytest.param(50_257, 4_000, marks=pytest.mark.slow)])
def test_counts_are_those_of_the_softmax(vocabulary: int, draws: int) -> None:
    """Noise that was infinite for one hash in 2^24 drew any token, about ten times in so many draws."""
    values = uneven_logits(vocabulary, rare=1e-6)
    assert abs(deviation(count(values, draws, 500), values)) < 5


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [8192, 50_257])
@pytest.mark.parametrize("rare", [1e-2, 1e-6])
def test_ten_million_counts_are_those_of_the_softmax(vocabulary: int, rare: float) -> None:
    """A uniform number of 24 bits also draws tokens too seldom that are rarer than 2^-24."""
    values = uneven_logits(vocabulary, rare)
    assert abs(deviation(count(values, 10_000_000, 20_000), values)) < 5
