"""Drawing a token at the end of a step, as `engine.sampling.sample` does for requests that restrict nothing.

Letters: B places of the batch, V vocabulary.
"""

from typing import Protocol

import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.engine.sampling import LARGEST_LOGIT

TOKENS_AT_ONCE = 1024
"""Tokens of the vocabulary that one program looks at."""


class Draws(Protocol):
    """How each of L lanes draws."""

    @property
    def seed(self) -> Tensor:
        """(L,) int64."""

    @property
    def drawn(self) -> Tensor:
        """(L,) int64, tokens drawn so far."""

    @property
    def temperature(self) -> Tensor:
        """(L,) float32; 0 is greedy."""

    @property
    def token(self) -> Tensor:
        """(L,) int32, the newest token."""


def draw(
    logits: Tensor, lanes: Draws, lane: Tensor, best: Tensor, best_at: Tensor, token: Tensor, vocabulary: int
) -> None:
    """The largest of logits / temperature + noise for each place, or of the logits where the temperature is 0.

    Of logits (B,V) the first `vocabulary` may be drawn. The token goes to `token` (B,) and to the lane of the place,
    `lane` (B,). Where a logit is NaN or too large `token` is -1, and the lane's is 0, which the next step can embed.
    `best` and `best_at` (B,ceil(V / TOKENS_AT_ONCE)) are scratch.
    """
    places, blocks = best.shape
    _draw_part[(places, blocks)](
        logits, lane, lanes.seed, lanes.drawn, lanes.temperature, best, best_at, logits.stride(0), vocabulary,
        BLOCK=TOKENS_AT_ONCE, LARGEST=LARGEST_LOGIT,
    )  # fmt: skip
    _draw_best[(places,)](
        lane, lanes.drawn, lanes.token, best, best_at, token, blocks, BLOCKS=triton.next_power_of_2(blocks)
    )


@triton.jit
def _mix(x):
    """SplitMix64's step and finaliser."""
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _gumbel(bits):
    """`engine.sampling.gumbel` of hashes, uint64."""
    u = (tl.abs((bits.to(tl.int64, bitcast=True) >> 11).to(tl.float32)) + 0.5) * 2.220446049250313e-16  # 2^-52
    u = tl.minimum(u, 0.99999994)  # the largest float32 below 1
    # -log1p(-u): its series where 1 - u would round u away
    series = u + u * u * (0.5 + u * (0.3333333333 + u * 0.25))
    return -tl.log(tl.where(u < 0.015625, series, -tl.log(1.0 - u)))


@triton.jit
def _draw_part(
    logits, lanes, seeds, drawn, temperatures, best, best_at, stride, vocabulary, BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,
):  # fmt: skip
    place, block = tl.program_id(0), tl.program_id(1)
    lane = tl.load(lanes + place)
    if lane < 0:
        return
    token = block * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(logits + place * stride + token, mask=token < vocabulary, other=float("-inf")).to(tl.float32)
    broken = tl.min((value <= LARGEST).to(tl.int32), axis=0) == 0  # NaN is no less than anything
    temperature = tl.load(temperatures + lane)
    if temperature > 0:
        row = _mix(_mix(tl.load(seeds + lane).to(tl.uint64)) + tl.load(drawn + lane).to(tl.uint64))
        bits = _mix(row + token.to(tl.uint64))
        value = value / temperature + _gumbel(bits)
    at = place * tl.num_programs(1) + block
    tl.store(best + at, tl.where(broken, float("inf"), tl.max(value, axis=0)))  # which no other block has
    tl.store(best_at + at, tl.where(broken, -1, block * BLOCK + tl.argmax(value, axis=0)))


@triton.jit
def _draw_best(lanes, drawn, newest, best, best_at, tokens, blocks, BLOCKS: tl.constexpr):
    place, i = tl.program_id(0), tl.arange(0, BLOCKS)
    lane = tl.load(lanes + place)
    if lane < 0:
        return
    value = tl.load(best + place * blocks + i, mask=i < blocks, other=float("-inf"))
    token = tl.load(best_at + place * blocks + tl.argmax(value, axis=0))
    token = tl.where(tl.max(value, axis=0) > float("-inf"), token, -1)
    tl.store(tokens + place, token)
    tl.store(newest + lane, tl.maximum(token, 0))
    tl.store(drawn + lane, tl.load(drawn + lane) + 1)
