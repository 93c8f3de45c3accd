"""The lowest logit that top-k and top-p leave in, found without a sort; `engine.sampling.restrict` defines it.

Both ask for the highest value for which all that is no lower adds up to enough: to k tokens, or to a share of the
weights. `spread` sorts a row's tokens into bins by their distance from the likeliest, one for each 64th of an octave,
and adds up how many are in each and their weights. So the answer's bin is known; `gather` copies what is in it, a
hundredth of a usual row. `select` halves the interval in which the answer is until no value is left in between, adding
up over the copy alone. Where a bin has more than fit into the copy, nearly always because they are equal, it adds up
over the whole row, and ends soon for the same reason: each halving moves the ends of the interval to values that exist.

Where top-k and top-p are both on, the weights that top-p shares out are known up to those of the bin where top-k ends:
the bins in which top-p may end, mostly one, are copied too.

Letters: B batch slots, N bins, V vocabulary.
"""

import triton
import triton.language as tl

from thoughtbubbles.engine.cuda.kernels.numbers import key, limit, value, weigh
from thoughtbubbles.engine.cuda.kernels.sampling_state import SELECTED

BINS = 2048
"""N; the first bin has all that is nearer than 2^-14 to the likeliest, the last all that is farther than 2^17.98."""
FACTS = 6
"""Numbers that `gather` leaves of each row for `select`."""
TOKENS_AT_ONCE = 2048
"""Tokens that a program of `spread` or `gather` looks at."""
MOST_GATHERED = 8192
"""Most tokens that are copied."""
AT_ONCE = 2048
"""Tokens that `select` looks at together."""

_BINS: tl.constexpr = tl.constexpr(BINS)
_FACTS: tl.constexpr = tl.constexpr(FACTS)
_MOST: tl.constexpr = tl.constexpr(MOST_GATHERED)
_SELECTED: tl.constexpr = tl.constexpr(SELECTED)
_DROPPED: tl.constexpr = tl.constexpr(23 - 6)
"""Low bits of a distance that its bin ignores."""
_NEAREST: tl.constexpr = tl.constexpr((127 - 14) << 6)
_IMPOSSIBLE: tl.constexpr = tl.constexpr(-0x7F800001)
"""The key of -inf."""
_LOWEST: tl.constexpr = tl.constexpr(-(2**31))
_HIGHEST: tl.constexpr = tl.constexpr(2**31 - 1)


@triton.jit
def clear(histogram, gathered, kind, place, part, PART: tl.constexpr):
    """Clear one part of what `spread` and `gather` add up of a slot, if its lane is of a kind that selects."""
    selects, i = (kind & _SELECTED) > 0, part * PART + tl.arange(0, PART)
    tl.store(histogram + place * 2 * _BINS + i, tl.zeros([PART], tl.int64), mask=selects & (i < 2 * _BINS))
    tl.store(gathered + place, 0, mask=selects & (part == 0))


@triton.jit
def spread(
    lanes, kinds, top_k, top_p, scaled, highest, histogram, vocabulary, row_size, blocks, BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Add to `histogram` (B,2,N) how many tokens of a block are in each bins, for top-k, and their weights, for top-p.

    The sums are of whole numbers: the order in which they are added up does not matter. Tokens that top-k surely leaves
    out are not added.
    """
    place, split = tl.program_id(0), tl.program_id(1)
    lane, likeliest = _likeliest(place, lanes, kinds, highest, blocks, BLOCKS)
    if tl.abs(likeliest) == float("inf"):
        return
    token, sums = split * BLOCK + tl.arange(0, BLOCK), histogram + place * 2 * _BINS
    own = token < vocabulary
    x = tl.load(scaled + place * row_size + token, mask=own, other=float("-inf"))
    bins, k = _bin(x, likeliest), tl.load(top_k + lane)
    if k > 0:
        own &= x >= _surely(highest + place * blocks, k, blocks, BLOCKS)
        tl.atomic_add(sums + bins, tl.full([BLOCK], 1, tl.int64), mask=own, sem="relaxed")
    if tl.load(top_p + lane) < 1:
        weight = weigh(x, likeliest)
        tl.atomic_add(sums + _BINS + bins, weight, mask=own & (weight > 0), sem="relaxed")


@triton.jit
def gather(
    lanes, kinds, top_k, top_p, scaled, highest, histogram, gathered, facts, vocabulary, row_size, blocks,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Copy what is in the bins of the answers to the end of the row in `scaled`, in any order, and count it in
    `gathered` (B,); where it is too much, some is left out. Write what `_ends` returns to `facts` (B,6).
    """
    place, split = tl.program_id(0), tl.program_id(1)
    lane, likeliest = _likeliest(place, lanes, kinds, highest, blocks, BLOCKS)
    if tl.abs(likeliest) == float("inf"):
        return
    row, token = scaled + place * row_size, split * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(row + token, mask=token < vocabulary, other=float("-inf"))
    cut, more, before, first, last, above = _ends(
        histogram + place * 2 * _BINS, tl.load(top_k + lane), tl.load(top_p + lane)
    )
    if split == 0:
        fact = facts + place * _FACTS
        tl.store(fact, cut)
        tl.store(fact + 1, more)
        tl.store(fact + 2, before)
        tl.store(fact + 3, first)
        tl.store(fact + 4, last)
        tl.store(fact + 5, above)
    bins = _bin(x, likeliest)
    number = ((token < vocabulary) & ((bins == cut) | ((bins >= first) & (bins <= last)))).to(tl.int32)
    at = tl.atomic_add(gathered + place, tl.sum(number, axis=0), sem="relaxed") + tl.cumsum(number, axis=0) - number
    tl.store(row + row_size - _MOST + at, x, mask=(number > 0) & (at < _MOST))


@triton.jit
def select(
    lanes, kinds, top_k, top_p, scaled, highest, gathered, facts, lowest, vocabulary, row_size, blocks,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write to `lowest` (B,) the lowest value that stays."""
    place = tl.program_id(0)
    lane, likeliest = _likeliest(place, lanes, kinds, highest, blocks, BLOCKS)
    if tl.abs(likeliest) == float("inf"):
        return
    k, p, number, fact = tl.load(top_k + lane), tl.load(top_p + lane), tl.load(gathered + place), facts + place * _FACTS
    cut, total = tl.load(fact), tl.load(fact + 2)
    copied = number <= _MOST
    source = scaled + place * row_size + tl.where(copied, row_size - _MOST, 0)
    size = tl.where(copied, number, vocabulary)
    least = tl.full([], _IMPOSSIBLE, tl.int64)
    if k > 0:
        least = _search(source, size, likeliest, cut, cut, least, tl.load(fact + 1), k, False, BLOCK)
        if p < 1:
            weight, _, _ = _add_up(source, size, likeliest, cut, cut, least, least, True, BLOCK)
            total += weight
    if p < 1:
        least = _search(source, size, likeliest, tl.load(fact + 3), tl.load(fact + 4), least, tl.load(fact + 5),
                        limit(p, total), True, BLOCK)  # fmt: skip
    tl.store(lowest + place, value(least))


@triton.jit
def row_highest(highest, blocks, BLOCKS: tl.constexpr):
    """Return the highest value of a row, from the highest of each of its blocks."""
    i = tl.arange(0, BLOCKS)
    return tl.max(tl.load(highest + i, mask=i < blocks, other=float("-inf")), axis=0)


@triton.jit
def _likeliest(place, lanes, kinds, highest, blocks, BLOCKS: tl.constexpr):
    """Return a slot's lane and its highest logit, infinite if there is nothing to select from, or no need to."""
    lane = tl.load(lanes + place)
    selects = (tl.load(kinds + lane, mask=lane >= 0, other=0) & _SELECTED) > 0
    return lane, row_highest(highest + place * blocks, tl.where(selects, blocks, 0), BLOCKS)


@triton.jit
def _surely(highest, k, blocks, BLOCKS: tl.constexpr):
    """Return a lower limit of the k-th highest value of a row: the k-th highest of its blocks' highest values."""
    i = tl.arange(0, BLOCKS)
    own = tl.load(highest + i, mask=i < blocks, other=float("-inf"))
    number = tl.sum((own[None, :] >= own[:, None]).to(tl.int32), axis=1)
    return tl.max(tl.where((number >= k) & (i < blocks), own, float("-inf")), axis=0)


@triton.jit
def _bin(x, likeliest):
    """Return the bin of each value: leading bits of its distance from the likeliest, which grows as the value falls."""
    far = (likeliest - x).to(tl.int32, bitcast=True) >> _DROPPED
    return tl.minimum(tl.maximum(far - _NEAREST, 0), _BINS - 1)


@triton.jit
def _ends(sums, k, p):
    """Return where top-k and top-p end.

    Of top-k: its bin, N without top-k; how many tokens the bins before have; their weights, or those of the row. Of
    top-p: the first and the last bin in which it may end, N and -1 without top-p; the weights before the first.
    """
    i = tl.arange(0, _BINS)
    cut = tl.full([], _BINS, tl.int32)
    first, last = cut, tl.full([], -1, tl.int32)
    more = tl.zeros([], tl.int64)
    before, above = more, more
    if k > 0:
        count = tl.cumsum(tl.load(sums + i), axis=0)
        cut = tl.sum((count < k).to(tl.int32), axis=0)
        more = tl.max(tl.where(count < k, count, 0), axis=0)
    if p < 1:
        weight = tl.cumsum(tl.load(sums + _BINS + i), axis=0)
        before = tl.max(tl.where(i < cut, weight, 0), axis=0)
        least = limit(p, before)
        first = tl.sum((weight < least).to(tl.int32), axis=0)
        above = tl.max(tl.where(weight < least, weight, 0), axis=0)
        most = limit(p, tl.max(tl.where(i <= cut, weight, 0), axis=0))
        last = tl.sum((weight < most).to(tl.int32), axis=0)
    return cut, more, before, first, last, above


@triton.jit
def _search(source, size, likeliest, first, last, least, above, enough, WEIGHED: tl.constexpr, BLOCK: tl.constexpr):
    """Return the key of the highest value from which on `_add_up` reaches `enough`. `above` is what other bins add."""
    bottom, top = least, key(likeliest) + 1
    while top - bottom > 1:
        middle = (bottom + top) >> 1
        amount, under, over = _add_up(source, size, likeliest, first, last, least, middle, WEIGHED, BLOCK)
        reached = above + amount >= enough
        bottom, top = tl.where(reached, over, bottom), tl.where(reached, top, under + 1)
    return bottom


@triton.jit
def _add_up(source, size, likeliest, first, last, least, middle, WEIGHED: tl.constexpr, BLOCK: tl.constexpr):
    """Return how many values have keys from `middle` on, or the sum of their weights, and the keys beside `middle`.

    These are the highest key below `middle`, and the lowest one from `middle` on. Of the first `size` values those
    count that are in the bins `first` to `last` and have keys from `least` on.
    """
    i = tl.arange(0, BLOCK)
    amount = tl.zeros([BLOCK], tl.int64)
    under, over = tl.full([BLOCK], _LOWEST, tl.int32), tl.full([BLOCK], _HIGHEST, tl.int32)
    for start in range(0, size, BLOCK):
        x = tl.load(source + start + i, mask=start + i < size, other=float("-inf"))
        bins, number = _bin(x, likeliest), key(tl.where(x == 0, 0.0, x)).to(tl.int32)  # -0.0 has another key
        inside = (start + i < size) & (bins >= first) & (bins <= last) & (number >= least)
        upon = inside & (number >= middle)
        if WEIGHED:
            amount += tl.where(upon, weigh(x, likeliest), 0)
        else:
            amount += upon.to(tl.int64)
        under = tl.maximum(under, tl.where(inside & (number < middle), number, _LOWEST))
        over = tl.minimum(over, tl.where(upon, number, _HIGHEST))
    return tl.sum(amount, axis=0), tl.max(under, axis=0).to(tl.int64), tl.min(over, axis=0).to(tl.int64)
