"""The lowest logit that top-k and top-p leave in, found without a sort; `engine.sampling.restrict` defines it.

Both ask for the highest value for which all that is no lower adds up to enough: to k tokens, or to a share of the
weights. `narrow` adds that up for a sample of the row, so that the answer is known to be between two neighbours of the
sample; `gather` copies what is between them, about a sixteenth of the row; and `select` halves the interval in which
the answer is until no number is left in between, adding up over the copy alone. Where more lies between the neighbours
than the copy has room for, most often because it is equal, `select` adds up over the whole row.

Sums of a block are one int64: 12 bits of how many from bit 52 on, and weights below.

Letters: B batch slots, P sampled tokens, V vocabulary.
"""

import triton
import triton.language as tl

from thoughtbubbles.engine.cuda.kernels.numbers import key, limit, value, weigh
from thoughtbubbles.engine.cuda.kernels.sampling_state import SELECTED

SAMPLED = 32
"""P, tokens of a row that are sampled; the first stands for -inf instead."""
TOKENS_AT_ONCE = 2048
"""Tokens that a program of `narrow` or `gather` looks at: with more, their number would not fit 12 bits."""
MOST_GATHERED = 8192
"""Tokens that there is room for between two of the sample."""
AT_ONCE = 4096
"""Tokens that `select` looks at together."""

_SAMPLED: tl.constexpr = tl.constexpr(SAMPLED)
_MOST: tl.constexpr = tl.constexpr(MOST_GATHERED)
_SELECTED: tl.constexpr = tl.constexpr(SELECTED)
_ONE: tl.constexpr = tl.constexpr(1 << 52)


@triton.jit
def narrow(
    lanes, kinds, top_p, scaled, highest, partial, gathered, vocabulary, room, blocks, BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write to `partial` (B,splits,P) how many tokens of a block are no lower than each of the sample, and their
    weights; and 0 to `gathered` (B,).
    """
    place, split = tl.program_id(0), tl.program_id(1)
    lane, likeliest = _likeliest(place, lanes, kinds, highest, blocks, BLOCKS)
    if tl.abs(likeliest) == float("inf"):
        return
    token, row = split * BLOCK + tl.arange(0, BLOCK), scaled + place * room
    x = tl.load(row + token, mask=token < vocabulary, other=float("-inf"))
    amount = tl.where(token < vocabulary, _ONE, tl.zeros([BLOCK], tl.int64))
    if tl.load(top_p + lane) < 1:
        amount += weigh(x, likeliest)
    out = partial + (place * tl.num_programs(1) + split) * _SAMPLED
    tl.store(out, tl.sum(amount, axis=0))
    for i in range(1, _SAMPLED):
        bound = tl.load(row + (i * vocabulary) // _SAMPLED)
        tl.store(out + i, tl.sum(tl.where(x >= bound, amount, 0), axis=0))
    if split == 0:
        tl.store(gathered + place, 0)


@triton.jit
def gather(
    lanes, kinds, top_k, top_p, scaled, highest, partial, gathered, vocabulary, room, blocks, BLOCKS: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Copy what lies between the two of the sample to the end of the row's room in `scaled`, in any order."""
    place, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    lane, likeliest = _likeliest(place, lanes, kinds, highest, blocks, BLOCKS)
    if tl.abs(likeliest) == float("inf"):
        return
    row = scaled + place * room
    low, _, end, _, _, inside, _ = _between(
        row, partial + place * splits * _SAMPLED, tl.load(top_k + lane), tl.load(top_p + lane), vocabulary, splits,
        SPLITS,
    )  # fmt: skip
    if inside > _MOST:
        return
    token = split * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(row + token, mask=token < vocabulary, other=float("-inf"))
    mine = (token < vocabulary) & (x >= low) & (x < end)
    number = mine.to(tl.int32)
    at = tl.atomic_add(gathered + place, tl.sum(number, axis=0)) + tl.cumsum(number, axis=0) - number
    tl.store(row + room - _MOST + at, x, mask=mine)


@triton.jit
def select(
    lanes, kinds, top_k, top_p, scaled, highest, partial, lowest, vocabulary, room, splits, blocks,
    SPLITS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write to `lowest` (B,) the lowest value that stays."""
    place = tl.program_id(0)
    lane, likeliest = _likeliest(place, lanes, kinds, highest, blocks, BLOCKS)
    if tl.abs(likeliest) == float("inf"):
        return
    row, k, p = scaled + place * room, tl.load(top_k + lane), tl.load(top_p + lane)
    low, high, _, more, above, inside, total = _between(
        row, partial + place * splits * _SAMPLED, k, p, vocabulary, splits, SPLITS
    )
    copied = inside <= _MOST
    start, size = tl.where(copied, room - _MOST, 0), tl.where(copied, inside, vocabulary)
    more, above = tl.where(copied, more, 0), tl.where(copied, above, 0)
    bottom, top = key(low), tl.minimum(key(high), key(likeliest) + 1)
    if k > 0:
        least, most = bottom, top
        while most - least > 1:
            middle = (least + most) >> 1
            enough = more + _count(row + start, size, value(middle), BLOCK) >= k
            least, most = tl.where(enough, middle, least), tl.where(enough, most, middle)
        bottom, top = least, key(likeliest) + 1
        if p < 1:
            total = above + _weight(row + start, size, value(least), likeliest, BLOCK)
    if p < 1:
        reach = limit(p, total)
        while top - bottom > 1:
            middle = (bottom + top) >> 1
            enough = above + _weight(row + start, size, value(middle), likeliest, BLOCK) >= reach
            bottom, top = tl.where(enough, middle, bottom), tl.where(enough, top, middle)
    tl.store(lowest + place, value(bottom))


@triton.jit
def row_highest(highest, blocks, BLOCKS: tl.constexpr):
    """The highest of a row's blocks."""
    i = tl.arange(0, BLOCKS)
    return tl.max(tl.load(highest + i, mask=i < blocks, other=float("-inf")), axis=0)


@triton.jit
def _likeliest(place, lanes, kinds, highest, blocks, BLOCKS: tl.constexpr):
    """A slot's lane and its highest logit, which is infinite where there is nothing to select from, or no need."""
    lane = tl.load(lanes + place)
    selects = (tl.load(kinds + lane, mask=lane >= 0, other=0) & _SELECTED) > 0
    return lane, row_highest(highest + place * blocks, tl.where(selects, blocks, 0), BLOCKS)


@triton.jit
def _between(row, partial, k, p, vocabulary, splits, SPLITS: tl.constexpr):
    """Two neighbours of the sample: what is no lower is enough for the first and too little for the second.

    Then: the end, not included, of what is to be copied; how many are no lower than that end and their weights; how
    many are to be copied; and the weights of the whole row. Where top-k and top-p are both on, all from the first
    neighbour on are copied, since top-p then needs all that top-k leaves.
    """
    i, split = tl.arange(0, _SAMPLED), tl.arange(0, SPLITS)
    bound = tl.load(row + (i * vocabulary) // _SAMPLED)
    bound = tl.where(i == 0, float("-inf"), bound)
    sums = tl.load(partial + split[:, None] * _SAMPLED + i[None, :], mask=split[:, None] < splits, other=0)
    count = tl.sum((sums >> 52) & 0xFFF, axis=0)
    weight = tl.sum(sums & (_ONE - 1), axis=0)
    total = tl.max(weight, axis=0)
    enough = ((k > 0) & (count >= k)) | ((k == 0) & (weight >= limit(p, total)))
    low = tl.max(tl.where(enough, bound, float("-inf")), axis=0)
    high = tl.min(tl.where(enough, float("inf"), bound), axis=0)
    more = tl.max(tl.where(enough, 0, count), axis=0)
    above = tl.max(tl.where(enough, 0, weight), axis=0)
    inside = tl.min(tl.where(enough, count, 1 << 32), axis=0)
    both = (k > 0) & (p < 1)
    more, above = tl.where(both, 0, more), tl.where(both, 0, above)
    return low, high, tl.where(both, float("inf"), high), more, above, inside - more, total


@triton.jit
def _count(source, size, least, BLOCK: tl.constexpr):
    """How many of the first `size` are at least `least`."""
    i = tl.arange(0, BLOCK)
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, size, BLOCK):
        x = tl.load(source + start + i, mask=start + i < size, other=float("-inf"))
        count += ((start + i < size) & (x >= least)).to(tl.int32)
    return tl.sum(count, axis=0).to(tl.int64)


@triton.jit
def _weight(source, size, least, likeliest, BLOCK: tl.constexpr):
    """What those weigh."""
    i = tl.arange(0, BLOCK)
    weight = tl.zeros([BLOCK], tl.int64)
    for start in range(0, size, BLOCK):
        x = tl.load(source + start + i, mask=start + i < size, other=float("-inf"))
        weight += tl.where((start + i < size) & (x >= least), weigh(x, likeliest), 0)
    return tl.sum(weight, axis=0)
