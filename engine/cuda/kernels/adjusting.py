"""Before the draw: logits with penalties, bias and bans, over the temperature; and what log-probabilities need of them.

Letters: B batch slots, L lanes, V vocabulary.
"""

import triton
import triton.language as tl

from thoughtbubbles.engine.cuda.kernels.logprobs import rank_block
from thoughtbubbles.engine.cuda.kernels.sampling_state import BANNED, BIASED, IN_PROMPT, MARKED, ONE_DRAWN, REWRITTEN
from thoughtbubbles.engine.cuda.kernels.selection import clear

_REWRITTEN: tl.constexpr = tl.constexpr(REWRITTEN)
_MARKED: tl.constexpr = tl.constexpr(MARKED)
_BIASED: tl.constexpr = tl.constexpr(BIASED)
_IN_PROMPT: tl.constexpr = tl.constexpr(IN_PROMPT)
_BANNED: tl.constexpr = tl.constexpr(BANNED)
_ONE_DRAWN: tl.constexpr = tl.constexpr(ONE_DRAWN)


@triton.jit
def penalise(value, mark, repetition, presence, frequency):
    """`engine.sampling.penalise` without its bias, of tokens with these marks."""
    count = mark // _ONE_DRAWN
    repeated = tl.where(value > 0, tl.div_rn(value, repetition), value * repetition)
    value = tl.where((count > 0) | ((mark & _IN_PROMPT) > 0), repeated, value)
    # A count times a float32 is exact in float64.
    amount = presence.to(tl.float64) + count.to(tl.float64) * frequency.to(tl.float64)
    return tl.where(count > 0, value - amount.to(tl.float32), value)


@triton.jit
def adjust(
    logits, lanes, kinds, drawn, temperatures, repetitions, presences, frequencies, min_tokens, tops, marks, biases,
    scaled, highest, sums, candidates, histogram, gathered, stride, model_vocabulary, vocabulary, width, row_size,
    BLOCK: tl.constexpr, LARGEST: tl.constexpr, CANDIDATES: tl.constexpr, CLEARED: tl.constexpr,
):  # fmt: skip
    """Write adjusted logits over temperature to `scaled`, and each block's highest to `highest`, +inf where a logit is
    NaN or too large; of lanes that need neither that nor log-probabilities, nothing. Clear what `selection` adds up.
    """
    place, block, blocks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    lane = tl.load(lanes + place)
    if lane < 0:
        return
    kind, top = tl.load(kinds + lane), tl.load(tops + lane)
    rewritten, marked = (kind & _REWRITTEN) > 0, (kind & _MARKED) > 0
    if (not rewritten) & (top < 0):
        return
    token, at = block * BLOCK + tl.arange(0, BLOCK), place * blocks + block
    own = token < vocabulary
    raw = tl.load(logits + place * stride + token, mask=token < model_vocabulary, other=float("-inf")).to(tl.float32)
    if top >= 0:
        rank_block(raw, token, vocabulary, top, sums + 2 * at, candidates + at * CANDIDATES)
    clear(histogram, gathered, kind, place, block, CLEARED)
    if rewritten:
        value = tl.where(own, raw, float("-inf"))
        broken = tl.min((value <= LARGEST).to(tl.int32), axis=0) == 0  # NaN is no less than anything
        mark = tl.load(marks + lane * width + token, mask=own & marked, other=0)
        if marked:
            value = penalise(value, mark, tl.load(repetitions + lane), tl.load(presences + lane),
                             tl.load(frequencies + lane))  # fmt: skip
        if (kind & _BIASED) > 0:
            value += tl.load(biases + lane * width + token, mask=own, other=0.0)
        early = tl.load(drawn + lane) < tl.load(min_tokens + lane)
        value = tl.where(early & ((mark & _BANNED) > 0), float("-inf"), value)
        temperature = tl.load(temperatures + lane)
        if temperature > 0:
            value = tl.div_rn(value, temperature)
        tl.store(scaled + place * row_size + token, value, mask=own)
        tl.store(highest + at, tl.where(broken, float("inf"), tl.max(value, axis=0)))
