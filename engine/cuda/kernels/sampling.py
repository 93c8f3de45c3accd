"""The draw at the end of a step, as `engine.sampling.sample` does it, and the log-probabilities of what was drawn.

Rows that restrict nothing are drawn from the logits by `draw_part` and `draw_best`. Where a row needs more, kernels
before these write the logits that it draws from (`adjusting`) and the lowest value that stays (`selection`).

Letters: B batch slots, L lanes, V vocabulary.
"""

import triton
import triton.language as tl

from thoughtbubbles.engine.cuda.kernels.logprobs import report_row
from thoughtbubbles.engine.cuda.kernels.overlap import wait_for_previous
from thoughtbubbles.engine.cuda.kernels.sampling_state import MARKED, ONE_DRAWN, REWRITTEN, SELECTED
from thoughtbubbles.engine.cuda.kernels.selection import row_highest

TOKENS_AT_ONCE = 1024
"""Tokens of the vocabulary that a program of `draw_part` or of `adjusting` looks at."""

_REWRITTEN: tl.constexpr = tl.constexpr(REWRITTEN)
_SELECTED: tl.constexpr = tl.constexpr(SELECTED)
_MARKED: tl.constexpr = tl.constexpr(MARKED)
_ONE_DRAWN: tl.constexpr = tl.constexpr(ONE_DRAWN)


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
def draw_part(
    logits, lanes, seeds, drawn, temperatures, kinds, log_min_p, scaled, highest, lowest, best, best_at, stride,
    vocabulary, row_size, BLOCKS: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Write the best token of each block to `best` and `best_at` (B,blocks): the largest of logits over temperature +
    noise, or of the logits where the temperature is 0; `best` is +inf where a logit is NaN or too large.
    """
    wait_for_previous()
    place, block, blocks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    lane = tl.load(lanes + place)
    if lane < 0:
        return
    token, at = block * BLOCK + tl.arange(0, BLOCK), place * blocks + block
    temperature = tl.load(temperatures + lane)
    rewritten = False
    if not PLAIN:
        rewritten = (tl.load(kinds + lane) & _REWRITTEN) > 0
    if rewritten:
        value = tl.load(scaled + place * row_size + token, mask=token < vocabulary, other=float("-inf"))
        likeliest = row_highest(highest + place * blocks, blocks, BLOCKS)
        broken = likeliest == float("inf")
        least = tl.where(broken, 0.0, likeliest) + tl.load(log_min_p + lane)
        if (tl.load(kinds + lane) & _SELECTED) > 0:
            least = tl.maximum(least, tl.load(lowest + place))
        value = tl.where(value >= least, value, float("-inf"))
    else:
        value = tl.load(logits + place * stride + token, mask=token < vocabulary, other=float("-inf")).to(tl.float32)
        broken = tl.min((value <= LARGEST).to(tl.int32), axis=0) == 0  # NaN is no less than anything
        if temperature > 0:
            value = value / temperature
    if temperature > 0:
        row = _mix(_mix(tl.load(seeds + lane).to(tl.uint64)) + tl.load(drawn + lane).to(tl.uint64))
        value += _gumbel(_mix(row + token.to(tl.uint64)))
    tl.store(best + at, tl.where(broken, float("inf"), tl.max(value, axis=0)))  # which no other block has
    tl.store(best_at + at, tl.where(broken, -1, block * BLOCK + tl.argmax(value, axis=0)))


@triton.jit
def draw_best(
    logits, lanes, drawn, newest, kinds, tops, marks, best, best_at, sums, candidates, tokens, logprobs, ids, stride,
    width, blocks, BLOCKS: tl.constexpr, MOST: tl.constexpr, CANDIDATES: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Write the best token of each slot to `tokens` (B,) and to its lane, which it moves on, and report it."""
    wait_for_previous()
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
    if not PLAIN:
        if ((tl.load(kinds + lane) & _MARKED) > 0) & (token >= 0):
            mark = marks + lane * width + token
            tl.store(mark, tl.load(mark) + _ONE_DRAWN)
        top = tl.load(tops + lane)
        if (top >= 0) & (token >= 0):
            report, at = place * (1 + 2 * MOST), place * blocks
            report_row(logits + place * stride, token, top, sums + 2 * at, candidates + at * CANDIDATES, blocks,
                       logprobs + report, ids + report + 1 + MOST, BLOCKS)  # fmt: skip
