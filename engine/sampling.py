"""Logits to token ids, as pure functions on a batch.

Letters: R requests, V vocabulary.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from thoughtbubbles.engine.sampling_params import SamplingParams

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BELOW_ONE = 1 - 2.0**-24
"""The largest float32 below 1."""
_MOST_PENALTY = 1e20
"""Repetition penalties beyond this, or below its reciprocal, act as these do, so that logits stay finite."""
LARGEST_LOGIT = 1e10
"""Logits beyond this count as infinite: by a penalty and a low temperature they would become so."""
LOG2_E = 1.4426950216293335
EXP2 = (1.0, 0.6931470036506653, 0.2402298003435135, 0.05548352375626564, 0.009678472764790058, 0.0012443081941455603,
        0.00021690608991775662)  # fmt: skip
"""2^x for x from 0 to 1 is this polynomial, lowest power first, to 9e-8; the coefficients are float32."""
LEAST_EXPONENT = -42.0
"""e^x below this is 0 as a weight."""
WEIGHT_BITS = 40
"""The likeliest token weighs 2^40, so that the weights of 2^22 tokens can be added up."""


def finite_rows(logits: Tensor) -> list[bool]:
    """Return for each row of logits (R,V) whether a token can be drawn: no logit is NaN or too large, one is finite.

    One pass, some microseconds: NaN, too, is the largest of its row.
    """
    finite: list[bool] = (logits.amax(1).abs() <= LARGEST_LOGIT).tolist()
    return finite


def repetition_factor(params: SamplingParams) -> float:
    """Return what divides positive logits of tokens seen before, and multiplies the others."""
    return min(max(params.repetition_penalty, 1 / _MOST_PENALTY), _MOST_PENALTY)


def penalise(logits: Tensor, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
    """Return one request's logits (V,) after repetition, presence and frequency penalties and bias, in this order.

    Every operation is one rounding of float32, but for the sum of both penalties, which is float64 of float32 settings.
    """
    if params.repetition_penalty != 1:
        factor = torch.tensor([repetition_factor(params)], device=logits.device)  # by a number, CUDA multiplies
        seen = torch.tensor(sorted({*prompt, *output}), device=logits.device)
        old = logits[seen]
        logits = logits.index_put((seen,), torch.where(old > 0, old / factor, old * factor))
    if output and (params.presence_penalty or params.frequency_penalty):
        counts = Counter(output)
        presence, frequency = (float(np.float32(p)) for p in (params.presence_penalty, params.frequency_penalty))
        logits = _add(logits, list(counts), [-(presence + n * frequency) for n in counts.values()])
    if params.logit_bias:
        logits = _add(logits, list(params.logit_bias), list(params.logit_bias.values()))
    return logits


def ban(logits: Tensor, ids: list[int]) -> Tensor:
    """Return logits (V,) with these tokens at -inf."""
    return logits.index_fill(0, torch.tensor(ids, device=logits.device, dtype=torch.int64), -torch.inf)


def banned_early(params: SamplingParams, end_of_text: int) -> list[int]:
    """Return the tokens that may not be drawn before `min_tokens` is reached."""
    return [*params.stop_token_ids, *([] if params.ignore_eos else [end_of_text])]


@dataclass(frozen=True)
class Draw:
    """Sampling parameters of R requests, in columns."""

    temperature: Tensor
    """(R,) 0 is greedy; others are at least `MIN_TEMPERATURE`."""
    top_k: Tensor
    """(R,) 0 is off."""
    top_p: Tensor
    """(R,) 1 is off."""
    log_min_p: Tensor
    """(R,) -inf is off."""
    seed: Tensor
    """(R,) int64."""
    position: Tensor
    """(R,) int64: how many tokens the request has drawn before."""

    @classmethod
    def of(cls, params: list[SamplingParams], seeds: list[int], positions: list[int], device: torch.device) -> "Draw":
        """Return the columns of these requests."""
        floats = torch.tensor([[p.effective_temperature, p.top_p, p.log_min_p] for p in params], device=device)
        whole = torch.tensor([[p.top_k, s, n] for p, s, n in zip(params, seeds, positions, strict=True)], device=device)
        return cls(floats[:, 0], whole[:, 0], floats[:, 1], floats[:, 2], whole[:, 1], whole[:, 2])

    def rows(self, index: Tensor) -> "Draw":
        """Return the rows at `index`."""
        return Draw(*(getattr(self, field.name)[index] for field in fields(self)))


def sample(logits: Tensor, draw: Draw) -> Tensor:
    """Return token ids (R,) for logits (R,V), finite but for impossible tokens, at -inf.

    A row's result depends on that row alone; a greedy row reads no noise.
    """
    sampled = draw.temperature > 0
    if bool(sampled.all()):
        return _sample(logits, draw)
    tokens = logits.argmax(1)
    if bool(sampled.any()):
        rows = sampled.nonzero()[:, 0]
        tokens[rows] = _sample(logits[rows], draw.rows(rows))
    return tokens


def _sample(logits: Tensor, draw: Draw) -> Tensor:
    """Sample by the Gumbel trick: the largest of logits / temperature + noise is a sample of their softmax."""
    scaled = restrict(logits.float() / draw.temperature[:, None], draw)
    noisy = gumbel(draw.seed, draw.position, logits.shape[1]).add_(scaled)
    tokens = noisy.argmax(1)
    # NaN would win argmax, and so would +inf; -inf is the largest where every token is impossible.
    assert bool(noisy.gather(1, tokens[:, None]).isfinite().all()), "a token that is drawn has a finite logit"
    return tokens


def restrict(scaled: Tensor, draw: Draw) -> Tensor:
    """Return logits over temperature (R,V) with tokens that top-k, top-p or min-p exclude at -inf.

    Each of the three keeps a lowest value, and all that equal it:

    - top-k: the k-th highest;
    - top-p: the highest for which the weights (`weigh`) of all that are no lower reach top_p of the weights of what
      top-k left, a product in float64 that is rounded up to a whole number, at least 1;
    - min-p: the highest plus log(min_p).
    """
    if bool((draw.top_k > 0).any() | (draw.top_p < 1).any()):
        scaled = scaled.masked_fill(scaled < _lowest(scaled, draw), -torch.inf)
    if bool((draw.log_min_p > -torch.inf).any()):
        likeliest = scaled.amax(1, keepdim=True)
        scaled = scaled.masked_fill(scaled < likeliest + draw.log_min_p[:, None], -torch.inf)
    return scaled


def _lowest(scaled: Tensor, draw: Draw) -> Tensor:
    """Return the lowest value (R,1) that top-k, and then top-p, leave in."""
    ordered = _descending(scaled)
    k = torch.where(draw.top_k > 0, draw.top_k, scaled.shape[1]).clamp(max=scaled.shape[1])
    lowest = ordered.gather(1, k[:, None] - 1)
    if bool((draw.top_p < 1).any()):
        reached = weigh(ordered, ordered[:, :1]).masked_fill_(ordered < lowest, 0).cumsum(1)
        limit = (draw.top_p.double() * reached[:, -1].double()).ceil().long().clamp(min=1)
        nucleus = ordered.gather(1, torch.searchsorted(reached, limit[:, None]))
        lowest = torch.where(draw.top_p[:, None] < 1, nucleus, lowest)
    return lowest


def weigh(scaled: Tensor, likeliest: Tensor) -> Tensor:
    """Return e^(scaled - likeliest) · 2^40 as whole numbers.

    They are the same on every device, and so are their sums, in any order: each step here is one rounding of float32
    or none, so a compiler must not contract a product and a sum.
    """
    x = (scaled - likeliest).clamp_(min=LEAST_EXPONENT).mul_(LOG2_E)
    below = x.floor()
    x.sub_(below)
    power = torch.full_like(x, EXP2[-1])
    for coefficient in EXP2[-2::-1]:
        power.mul_(x).add_(coefficient)
    return power.mul_(2.0**WEIGHT_BITS).long() >> below.neg_().long()


def _descending(rows: Tensor) -> Tensor:
    """Return each row (R,V) in descending order. numpy takes a thirtieth of torch's time, which sorts indices too."""
    if rows.device.type != "cpu":
        return rows.sort(1, descending=True).values
    return torch.from_numpy(np.sort(rows.numpy(), axis=1)).flip(1)


def gumbel(seed: Tensor, position: Tensor, vocabulary: int) -> Tensor:
    """Return Gumbel noise (R,V), finite: a hash of seed (R,), position (R,) and token, the same in any batch.

    The noise is -log(-log1p(-u)), u uniform in (0, 1). A token is drawn by the smallest of -log1p(-u) / probability, so
    small u are what matters: they keep all of float32's precision, down to 2^-53.
    """
    row = _mix(_mix(seed) + position)[:, None]
    bits = _mix(row + torch.arange(vocabulary, device=seed.device))
    u = (bits >> 11).float().abs_().add_(0.5).mul_(2.0**-52).clamp_(max=_BELOW_ONE)  # 53 bits with their sign
    return u.neg_().log1p_().neg_().log_().neg_()


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's step and finaliser on int64, which wraps as uint64 would."""
    x = x + _signed(_GOLDEN)
    x.bitwise_xor_(_shift(x, 30)).mul_(_signed(_MIX_1))
    x.bitwise_xor_(_shift(x, 27)).mul_(_signed(_MIX_2))
    return x.bitwise_xor_(_shift(x, 31))


def _shift(x: Tensor, by: int) -> Tensor:
    """Return `x` shifted to the right, with zeros on the left."""
    return (x >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64)


def _add(logits: Tensor, ids: list[int], values: list[float]) -> Tensor:
    where = torch.tensor(ids, device=logits.device)
    return logits.index_add(0, where, torch.tensor(values, device=logits.device, dtype=logits.dtype))
