"""Logits to token ids, as pure functions on a batch.

Letters: R requests, V vocabulary.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.sampling_params import SamplingParams

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def penalise(logits: Tensor, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
    """One request's logits (V,) after penalties and bias, in the order repetition, presence and frequency, bias."""
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted({*prompt, *output}), device=logits.device)
        old = logits[seen]
        logits = logits.index_put((seen,), torch.where(old > 0, old / params.repetition_penalty,
                                                       old * params.repetition_penalty))  # fmt: skip
    if output and (params.presence_penalty or params.frequency_penalty):
        counts = Counter(output)
        penalty = [params.presence_penalty + n * params.frequency_penalty for n in counts.values()]
        logits = _add(logits, list(counts), [-p for p in penalty])
    if params.logit_bias:
        logits = _add(logits, list(params.logit_bias), list(params.logit_bias.values()))
    return logits


def ban(logits: Tensor, ids: list[int]) -> Tensor:
    """Logits (V,) with these tokens made impossible."""
    return logits.index_fill(0, torch.tensor(ids, device=logits.device, dtype=torch.int64), -torch.inf)


@dataclass(frozen=True)
class Draw:
    """How each of R requests picks its next token."""

    temperature: Tensor
    """(R,) 0 is greedy."""
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
        """The draw of these requests' parameters."""
        floats = torch.tensor([[p.temperature, p.top_p, p.min_p] for p in params], device=device)
        whole = torch.tensor([[p.top_k, s, n] for p, s, n in zip(params, seeds, positions, strict=True)], device=device)
        return cls(floats[:, 0], whole[:, 0], floats[:, 1], floats[:, 2], whole[:, 1], whole[:, 2])


def sample(logits: Tensor, draw: Draw) -> Tensor:
    """Token ids (R,) from logits (R,V). A row's result depends on that row alone.

    Gumbel's way: the largest of logits / temperature + noise is a sample of their softmax. The noise is a function of
    seed, position and token.
    """
    greedy = (draw.temperature == 0)[:, None]
    if bool(greedy.all()):
        return logits.argmax(1)
    scaled = logits.float() / torch.where(greedy, 1.0, draw.temperature[:, None])
    noise = gumbel(draw.seed, draw.position, logits.shape[1]).mul_(~greedy)
    return noise.add_(restrict(scaled, draw)).argmax(1)


def restrict(scaled: Tensor, draw: Draw) -> Tensor:
    """Logits over temperature (R,V) with what top-k, top-p and min-p leave out at -inf, applied in this order."""
    if bool((draw.top_k > 0).any() | (draw.top_p < 1).any()):
        scaled = scaled.masked_fill(scaled < _lowest(scaled, draw), -torch.inf)
    if bool((draw.min_p > 0).any()):
        likeliest = scaled.amax(1, keepdim=True)
        scaled = scaled.masked_fill(scaled < likeliest + draw.min_p[:, None].log(), -torch.inf)
    return scaled


def _lowest(scaled: Tensor, draw: Draw) -> Tensor:
    """The lowest (R,1) that top-k, and then top-p, leave in; what equals it stays with it."""
    ordered, rank = _descending(scaled), torch.arange(scaled.shape[1], device=scaled.device)
    ordered = ordered.masked_fill((draw.top_k[:, None] > 0) & (rank >= draw.top_k[:, None]), -torch.inf)
    p = ordered.softmax(1)
    stays = (p.cumsum(1) - p < draw.top_p[:, None]) | (draw.top_p[:, None] == 1)
    return ordered.masked_fill(~stays | (ordered == -torch.inf), torch.inf).amin(1, keepdim=True)


def _descending(rows: Tensor) -> Tensor:
    """Each row (R,V) from its highest to its lowest; numpy's order of numbers alone takes a thirtieth of torch's."""
    if rows.device.type != "cpu":
        return rows.sort(1, descending=True).values
    return torch.from_numpy(np.sort(rows.numpy(), axis=1)).flip(1)


def gumbel(seed: Tensor, position: Tensor, vocabulary: int) -> Tensor:
    """Gumbel noise (R,V), each a hash of seed (R,), position (R,) and token: the same in any batch, on any device."""
    row = _mix(_mix(seed) + position)[:, None]
    bits = _mix(row + torch.arange(vocabulary, device=seed.device))
    uniform = (bits >> 40).bitwise_and_(0xFFFFFF).float().add_(0.5).mul_(2.0**-24)
    return uniform.log_().neg_().log_().neg_()


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
