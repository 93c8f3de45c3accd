"""The likeliest tokens of a row, without sorting it: those of each block, and then those of all blocks.

A candidate is one int64, so that comparing candidates compares logits and, of equal ones, prefers the lower id.
"""

import triton
import triton.language as tl

from thoughtbubbles.engine.cuda.kernels.numbers import key, value
from thoughtbubbles.engine.sampling_params import MAX_LOGPROBS

CANDIDATES = triton.next_power_of_2(MAX_LOGPROBS)
"""Candidates of a block that have a place."""
_ROW: tl.constexpr = tl.constexpr(CANDIDATES)
_NONE: tl.constexpr = tl.constexpr(-(2**63))
_IDS: tl.constexpr = tl.constexpr(2**32 - 1)


@triton.jit
def rank_block(value, token, vocabulary, top, sums, candidates):
    """Write a block's largest logit and its sum of exponentials to `sums`, and its `top` candidates to `candidates`.

    `value` is -inf where there is no token; those from `vocabulary` on count in the sum alone.
    """
    most = tl.max(value, axis=0)
    shift = tl.where(tl.abs(most) < float("inf"), most, 0.0)
    tl.store(sums, most)
    tl.store(sums + 1, tl.sum(tl.exp(value - shift), axis=0))
    value = tl.where(value == 0, 0.0, value)  # -0.0 has another key
    rest = tl.where(token < vocabulary, (key(value) << 32) | (token.to(tl.int64) ^ _IDS), _NONE)
    for i in range(top):
        best = tl.max(rest, axis=0)
        tl.store(candidates + i, best)
        rest = tl.where(rest == best, _NONE, rest)


@triton.jit
def report_row(logits, chosen, top, sums, candidates, blocks, logprobs, ids, BLOCKS: tl.constexpr):
    """Write a row's log-probabilities, the chosen token's first, and the ids of the `top` likeliest, best first."""
    block, i = tl.arange(0, BLOCKS), tl.arange(0, _ROW)
    most = tl.load(sums + 2 * block, mask=block < blocks, other=float("-inf"))
    part = tl.load(sums + 2 * block + 1, mask=block < blocks, other=0.0)
    highest = tl.max(most, axis=0)
    total = highest + tl.log(tl.sum(part * tl.exp(most - highest), axis=0))
    tl.store(logprobs, tl.load(logits + chosen).to(tl.float32) - total)
    rest = tl.load(candidates + block[:, None] * _ROW + i[None, :],
                   mask=(block[:, None] < blocks) & (i[None, :] < top), other=_NONE)  # fmt: skip
    for n in range(top):
        best = tl.max(tl.max(rest, axis=1), axis=0)
        tl.store(logprobs + 1 + n, value(best >> 32) - total)
        tl.store(ids + n, ((best & _IDS) ^ _IDS).to(tl.int32))
        rest = tl.where(rest == best, _NONE, rest)


@triton.jit
def rank_rows(
    logits, tops, sums, candidates, stride, vocabulary, model_vocabulary, BLOCK: tl.constexpr,
    CANDIDATES: tl.constexpr,
):  # fmt: skip
    """Rank a block of each row of logits (W,·), for the `tops` (W,) likeliest tokens of each."""
    row, block, blocks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    token, at = block * BLOCK + tl.arange(0, BLOCK), row * blocks + block
    raw = tl.load(logits + row * stride + token, mask=token < model_vocabulary, other=float("-inf")).to(tl.float32)
    rank_block(raw, token, vocabulary, tl.load(tops + row), sums + 2 * at, candidates + at * CANDIDATES)


@triton.jit
def report_rows(
    logits, targets, tops, sums, candidates, logprobs, ids, stride, blocks, BLOCKS: tl.constexpr, MOST: tl.constexpr,
    CANDIDATES: tl.constexpr,
):  # fmt: skip
    """Write each row's report, the log-probability of `targets` (W,) first, as `draw_best` lays it out."""
    row = tl.program_id(0)
    report, at = row * (1 + 2 * MOST), row * blocks
    report_row(logits + row * stride, tl.load(targets + row), tl.load(tops + row), sums + 2 * at,
               candidates + at * CANDIDATES, blocks, logprobs + report, ids + report + 1 + MOST, BLOCKS)  # fmt: skip
