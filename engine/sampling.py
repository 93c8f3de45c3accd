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


def finite_rows(logits: Tensor) -> list[bool]:
    """Return for each row of logits (R,V) whether a token can be drawn: no logit is NaN or too large, one is finite.

    One pass, some microseconds: NaN, too, is the largest of its row.
    """
    finite: list[bool] = (logits.amax(1).abs() <= LARGEST_LOGIT).tolist()
    return finite


def penalise(logits: Tensor, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
    """Return one request's logits (V,) after repetition, presence and frequency penalties and bias, in this order."""
    if params.repetition_penalty != 1:
        factor = min(max(params.repetition_penalty, 1 / _MOST_PENALTY), _MOST_PENALTY)
        seen = torch.tensor(sorted({*prompt, *output}), device=logits.device)
        old = logits[seen]
        logits = logits.index_put((seen,), torch.where(old > 0, old / factor, old * factor))
    if output and (params.presence_penalty or params.frequency_penalty):
        counts = Counter(output)
        penalty = [params.presence_penalty + n * params.frequency_penalty for n in counts.values()]
        logits = _add(logits, list(counts), [-p for p in penalty])
    if params.logit_bias:
        logits = _add(logits, list(params.logit_bias), list(params.logit_bias.values()))
    return logits


def ban(logits: Tensor, ids: list[int]) -> Tensor:
    """Return logits (V,) with these tokens at -inf."""
    return logits.index_fill(0, torch.tensor(ids, device=logits.device, dtype=torch.int64), -torch.inf)


@dataclass(frozen=True)
class Draw:
    """Sampling parameters of R requests, in columns."""

    temperature: Tensor
    """(R,) 0 is greedy; others are at least `MIN_TEMPERATURE`."""
    top_k: Tensor
    """(R,) 0 is off."""
    top_p: Tensor
    """(R,) 1 is off."""
    min_p: Tensor
    """(R,) 0 is off."""
    seed: Tensor
    """(R,) int64."""
    position: Tensor
    """(R,) int64: how many tokens the request has drawn before."""

    @classmethod
    def of(cls, params: list[SamplingParams], seeds: list[int], positions: list[int], device: torch.device) -> "Draw":
        """Return the columns of these requests."""
        floats = torch.tensor([[p.effective_temperature, p.top_p, p.min_p] for p in params], device=device)
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
    """Return logits over temperature (R,V) with tokens that top-k, top-p or min-p exclude at -inf, in this order."""
    if bool((draw.top_k > 0).any() | (draw.top_p < 1).any()):
        scaled = scaled.masked_fill(scaled < _lowest(scaled, draw), -torch.inf)
    if bool((draw.min_p > 0).any()):
        likeliest = scaled.amax(1, keepdim=True)
        scaled = scaled.masked_fill(scaled < likeliest + draw.min_p[:, None].log(), -torch.inf)
    return scaled


def _lowest(scaled: Tensor, draw: Draw) -> Tensor:
    """Return the lowest logit (R,1) that top-k and then top-p keep; tokens equal to it are kept as well."""
    ordered, rank = _descending(scaled), torch.arange(scaled.shape[1], device=scaled.device)
    ordered = ordered.masked_fill((draw.top_k[:, None] > 0) & (rank >= draw.top_k[:, None]), -torch.inf)
    p = ordered.softmax(1)
    stays = (p.cumsum(1) - p < draw.top_p[:, None]) | (draw.top_p[:, None] == 1)
    stays |= rank == 0  # the likeliest, also where top_p is 0 in float32
    return ordered.masked_fill(~stays | (ordered == -torch.inf), torch.inf).amin(1, keepdim=True)


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
    """A logical shift to the right."""
    return (x >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64)


def _add(logits: Tensor, ids: list[int], values: list[float]) -> Tensor:
    where = torch.tensor(ids, device=logits.device)
    return logits.index_add(0, where, torch.tensor(values, device=logits.device, dtype=logits.dtype))
