"""Sampling draws from the distribution it says, row by row, and the same in any company."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from thoughtbubbles.engine import InvalidRequest, SamplingParams
from thoughtbubbles.engine.sampling import Draw, ban, gumbel, penalise, restrict, sample, weigh
from thoughtbubbles.engine.scoring import highest

CPU = torch.device("cpu")


def draw(positions: list[int], seed: int = 1, **settings: float) -> Draw:
    params = SamplingParams(**settings)  # type: ignore[arg-type]
    return Draw.of([params] * len(positions), [seed] * len(positions), positions, CPU)


def kept(logits: list[float], **settings: float) -> list[int]:
    """The tokens that stay possible."""
    return restrict(torch.tensor([logits]), draw([0], **settings))[0].isfinite().nonzero()[:, 0].tolist()


def frequencies(logits: Tensor, count: int, **settings: float) -> Tensor:
    ids = sample(logits.expand(count, -1), draw(list(range(count)), **settings))
    return ids.bincount(minlength=logits.shape[-1]) / count


def test_greedy_takes_the_likeliest() -> None:
    logits = torch.randn(5, 11)
    assert torch.equal(sample(logits, draw([0] * 5, temperature=0)), logits.argmax(1))


@pytest.mark.numeric
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])
    wanted = (logits / temperature).softmax(0)
    # 20,000 draws: a share's standard deviation is below 0.0036, so 0.015 is four of them
    torch.testing.assert_close(frequencies(logits, 20_000, temperature=temperature), wanted, atol=0.015, rtol=0)


@pytest.mark.numeric
def test_noise_is_gumbels() -> None:
    noise = gumbel(torch.arange(200), torch.zeros(200, dtype=torch.int64), 500)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(1.6449, abs=0.05)
    assert len(noise.unique()) > 0.99 * noise.numel()


def test_a_row_draws_the_same_in_any_company() -> None:
    logits = torch.randn(8, 50)
    seeds, positions = list(range(8)), [3, 1, 4, 1, 5, 9, 2, 6]
    params = [SamplingParams(temperature=1 + i / 8, top_p=1 - i / 10, top_k=i, min_p=i / 100) for i in range(8)]
    together = sample(logits, Draw.of(params, seeds, positions, CPU))
    for i in range(8):
        alone = sample(logits[i : i + 1], Draw.of(params[i : i + 1], seeds[i : i + 1], positions[i : i + 1], CPU))
        assert alone.item() == together[i].item()


def test_seed_and_position_each_change_the_draw() -> None:
    logits = torch.zeros(1, 1000)
    ids = {sample(logits, draw([p], seed=s)).item() for p in range(10) for s in range(-5, 5)}
    # 100 draws of 1,000 tokens give 95.2 different ones on average, with a standard deviation of 2.1
    assert len(ids) > 85


def test_top_k() -> None:
    assert kept([1.0, 3.0, 2.0, 0.0], top_k=2) == [1, 2]


def test_equals_stay_or_go_together() -> None:
    assert kept([1.0, 3.0, 2.0, 2.0], top_k=2) == [1, 2, 3]
    assert kept(torch.tensor([0.2, 0.4, 0.2, 0.2]).log().tolist(), top_p=0.5) == [0, 1, 2, 3]


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log().tolist()
    assert kept(logits, top_p=0.4) == [1]
    assert kept(logits, top_p=0.7) == [1, 3]
    assert kept(logits, top_p=0.8) == [1, 2, 3]
    assert kept(logits, top_p=1.0) == [0, 1, 2, 3]


def test_top_p_counts_what_top_k_left() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().tolist()
    assert kept(logits, top_k=2, top_p=0.55) == [0]  # 0.4 / 0.7 is above 0.55


def test_top_p_counts_all_that_top_k_left() -> None:
    """Three tie for the second place: four are left, and of their weights the first has 0.4."""
    logits = torch.tensor([0.4, 0.2, 0.2, 0.2]).log().tolist()
    assert kept(logits, top_k=2, top_p=0.39) == [0]
    assert kept(logits, top_k=2, top_p=0.45) == [0, 1, 2, 3]


@pytest.mark.parametrize("top_k", [0, 1, 7, 40, 59, 60, 90])
@pytest.mark.parametrize("top_p", [1e-46, 0.2, 0.7, 1 - 2**-24, 1.0])
def test_thresholds_by_their_definition(top_k: int, top_p: float) -> None:
    """Each value stays or goes by whole numbers added up one by one, also among ties and impossible tokens."""
    rows = torch.randn(20, 60) * torch.tensor([0.1, 1, 5, 100]).repeat(5)[:, None]
    rows[5:10], rows[10:, ::7] = rows[5:10].round(), -torch.inf
    restricted = restrict(rows, draw([0] * 20, top_k=top_k, top_p=top_p))
    for row, ours in zip(rows, restricted, strict=True):
        weights = dict(zip(row.tolist(), weigh(row, row.max()).tolist(), strict=True))
        values, stays = row.tolist(), set[float]()
        least = sorted(values, reverse=True)[min(top_k or 60, 60) - 1]
        whole = sum(weights[value] for value in values if value >= least)
        reach = max(1, math.ceil(float(np.float32(top_p)) * whole)) if top_p < 1 else whole
        for value in values:
            before = sum(weights[other] for other in values if other > value)
            if value >= least and (top_p == 1 or before < reach):
                stays.add(value)
        assert ours.tolist() == [value if value in stays else -math.inf for value in values]


def test_weights_are_exponentials() -> None:
    x = -28 * torch.rand(10_000)
    # x over ln 2 is rounded to float32, up to 2^-20 off at 2^5; and weights are whole numbers
    torch.testing.assert_close(weigh(x, torch.tensor(0.0)).double(), x.double().exp() * 2**40, rtol=2e-6, atol=1)


@pytest.mark.parametrize("top", [0, 1, 3, 6, 7, 20])
def test_of_equal_logits_the_lowest_id_is_reported_first(top: int) -> None:
    logits = torch.tensor([[1.0, 2, 2, 0, 2, 1, 2], [5, 5, 5, 5, 5, 5, 5], [0, 1, 2, 3, 4, 5, 6]])
    order = [[1, 2, 4, 6, 0, 5, 3], [0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]]
    assert highest(logits, top).tolist() == [row[:top] for row in order]


def test_min_p_is_a_share_of_the_likeliest() -> None:
    logits = torch.tensor([0.6, 0.2, 0.15, 0.05]).log().tolist()
    assert kept(logits, min_p=0.3) == [0, 1]
    assert kept(logits, min_p=0.0) == [0, 1, 2, 3]


def test_penalties_and_bias() -> None:
    logits = torch.tensor([1.0, -1.0, 2.0, 0.0])
    params = SamplingParams(repetition_penalty=2, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={3: 7.0})
    adjusted = penalise(logits, params, prompt=[1], output=[2, 2])
    assert adjusted.tolist() == [1.0, -2.0, 2 / 2 - 0.5 - 2 * 0.25, 7.0]
    assert logits.tolist() == [1.0, -1.0, 2.0, 0.0]


def test_banned_tokens_are_impossible() -> None:
    assert ban(torch.ones(3), [0, 2]).tolist() == [-torch.inf, 1.0, -torch.inf]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_tokens", -1), ("temperature", 2.1), ("temperature", -0.1), ("temperature", float("nan")), ("top_p", 0),
        ("top_p", 1.5), ("top_k", -1), ("top_k", 2**31),
        ("seed", 2**63), ("seed", -(2**63) - 1), ("min_p", 2), ("presence_penalty", 3), ("frequency_penalty", -3),
        ("repetition_penalty", 0), ("min_tokens", -1), ("logprobs", 21), ("prompt_logprobs", -1), ("fork_ratio", 0.5),
        ("stop", ("a", "")), ("fork_selection", "blockwise"),
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(setting: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=setting) as caught:
        SamplingParams(**{setting: value})  # type: ignore[arg-type]
    assert caught.value.param == setting


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 2**63}, f"seed must be at least {-(2**63)}, at most {2**63 - 1}, not {2**63}"),
        ({"top_k": 2**31}, f"top_k must be at least 0, at most {2**31 - 1}, not {2**31}"),
        ({"temperature": 2.5}, "temperature must be at least 0, at most 2, not 2.5"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_limits_are_not_rounded(settings: dict[str, Any], message: str) -> None:
    """The largest seed was 9.22337e+18, which is a smaller one."""
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**settings)
    assert str(caught.value) == message
