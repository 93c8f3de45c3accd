"""The kernel draws what `engine.sampling.sample` draws, whatever the hash, and greedy lanes read no noise."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.engine.draws import EXTREME_BITS, deviation, seed_of, uneven_logits
from tests.engine.kernels.conftest import DEVICE
from thoughtbubbles.engine import SamplingParams
from thoughtbubbles.engine.sampling import Draw, finite_rows, sample

V, CHOSEN, POSITION = 300, 123, 7


def kernel(
    logits: Tensor,
    temperatures: list[float],
    seeds: list[int],
    positions: Tensor,
    vocabulary: int,
    *,
    plain: bool = True,
) -> Tensor:
    """What the kernel draws for rows (B,V), each a lane."""
    from thoughtbubbles.engine.cuda.sampler import DeviceSampler

    rows = len(logits)
    sampler = DeviceSampler(np.zeros(rows, np.int64), batch_size=rows, vocabulary=vocabulary,
                            model_vocabulary=logits.shape[1], end_of_text=0, device=DEVICE)  # fmt: skip
    state, lane = sampler.state, torch.arange(rows, dtype=torch.int32, device=DEVICE)
    state.seed[:rows], state.temperature[:rows] = torch.tensor(seeds), torch.tensor(temperatures)
    state.drawn[:rows], token = positions, torch.empty_like(lane)
    sampler.draw(logits.to(DEVICE), lane, token, plain=plain)
    assert torch.equal(token.clamp(min=0), state.token[:rows])
    assert torch.equal(state.drawn[:rows], positions.to(DEVICE) + 1)
    return token.long().cpu()


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("temperature", [1e-5, 0.3, 1.0, 2.0])
def test_the_kernel_draws_as_the_host(temperature: float, plain: bool) -> None:
    logits, positions = 3 * torch.randn(32, 1500), torch.arange(32) % 5
    params = [SamplingParams(temperature=temperature)] * 32
    seeds = [seed * 2**40 - 5 for seed in range(32)]
    want = sample(logits, Draw.of(params, seeds, positions.tolist(), torch.device("cpu")))
    assert torch.equal(kernel(logits, [temperature], seeds, positions, 1500, plain=plain), want)


@pytest.mark.parametrize("bits", EXTREME_BITS)
def test_an_extreme_hash_draws_no_impossible_token(bits: int) -> None:
    logits = torch.randn(3, V + 1)
    logits[:, CHOSEN] = torch.tensor([-120.0, -torch.inf, -1.0])
    tokens = kernel(logits, [1.0, 1.0, 0.0], [seed_of(bits, POSITION, CHOSEN)] * 3, torch.full((3,), POSITION), V)
    assert CHOSEN not in tokens.tolist()
    assert tokens[2] == logits[2, :V].argmax()


@pytest.mark.parametrize("bits", EXTREME_BITS)
def test_an_extreme_hash_of_a_token_that_only_pads_is_not_drawn(bits: int) -> None:
    seed = seed_of(bits, POSITION, V)  # the first token beyond the vocabulary
    tokens = kernel(torch.zeros(1, V + 8), [1.0], [seed], torch.full((1,), POSITION), V)
    assert tokens.item() < V


@pytest.mark.parametrize("temperature", [0.0, 1e-5, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("at", [0, 1100, 1499])
def test_rows_that_are_not_finite_draw_nothing(temperature: float, value: float, at: int) -> None:
    """And the others what they draw alone; beyond the vocabulary a row may hold anything."""
    logits, positions = 3 * torch.randn(5, 1508), torch.arange(5)
    logits[:, 1500:] = math.nan
    want = kernel(logits, [temperature], [7] * 5, positions, 1500)
    assert (want >= 0).all()
    logits[[1, 3], at] = value
    logits[4, :1500] = -math.inf
    got = kernel(logits, [temperature], [7] * 5, positions, 1500)
    assert got.tolist() == [-1 if i in (1, 3, 4) else int(token) for i, token in enumerate(want)]
    assert finite_rows(logits[:, :1500]) == (got >= 0).tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("vocabulary", [8192, 50_257])
@pytest.mark.parametrize("rare", [1e-2, 1e-6])
def test_ten_million_counts_are_those_of_the_softmax(vocabulary: int, rare: float) -> None:
    logits, counts = uneven_logits(vocabulary, rare), torch.zeros(vocabulary, dtype=torch.int64)
    rows = logits.to(DEVICE).expand(2_000, -1)
    for first in range(0, 10_000_000, 2_000):
        tokens = kernel(rows, [1.0], [1], torch.arange(first, first + 2_000), vocabulary)
        counts += tokens.bincount(minlength=vocabulary)
    assert abs(deviation(counts, logits)) < 5
