"""What sampling on the device knows of each running request.

Letters: L lanes, one a running request; V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thoughtbubbles.engine.cache.layout import Indices
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.sampling import banned_early, repetition_factor
from thoughtbubbles.engine.sampling_params import SamplingParams
from thoughtbubbles.engine.transfer import to_device

REWRITTEN = 1
"""Bit of `SamplingState.kind`: logits are changed or restricted before the draw."""
SELECTED = 2
"""top_k or top_p is on."""
MARKED = 4
"""The request has penalties, or tokens that are banned until `min_tokens`: its marks are read."""
BIASED = 8
"""The request has a logit_bias."""

IN_PROMPT = 1
"""Bit of a mark: the token is in the prompt."""
BANNED = 2
"""The token may not be drawn before `min_tokens`."""
ONE_DRAWN = 4
"""Added to a mark each time that the token is drawn."""


@dataclass(frozen=True)
class SamplingState:
    """How each lane draws. Drawing moves it on by one token; the host writes it when a request gets a lane."""

    longs: Tensor
    """(2,L) int64, the fields of this type in their order."""
    words: Tensor
    """(11,L) int32, the other settings in their order."""
    seed: Tensor
    """(L,) int64."""
    drawn: Tensor
    """(L,) int64, tokens drawn so far."""
    kind: Tensor
    """(L,) int32, bits: REWRITTEN, SELECTED, MARKED, BIASED."""
    top_k: Tensor
    """(L,) int32; 0 is off."""
    min_tokens: Tensor
    """(L,) int32, tokens before which marked ones are banned."""
    logprobs: Tensor
    """(L,) int32, likeliest tokens to report; -1 reports nothing."""
    token: Tensor
    """(L,) int32, the newest token."""
    temperature: Tensor
    """(L,) float32; 0 is greedy."""
    top_p: Tensor
    """(L,) float32; 1 is off."""
    log_min_p: Tensor
    """(L,) float32; -inf is off."""
    repetition: Tensor
    """(L,) float32."""
    presence: Tensor
    """(L,) float32."""
    frequency: Tensor
    """(L,) float32."""
    marks: Tensor
    """(L,V) int32: times drawn · ONE_DRAWN, and the bits IN_PROMPT and BANNED."""
    bias: Tensor
    """(L,V) float32."""

    @classmethod
    def empty(cls, lanes: int, vocabulary: int, device: torch.device) -> Self:
        """Return the state of so many lanes."""
        longs = torch.zeros((2, lanes), dtype=torch.int64, device=device)
        words = torch.zeros((11, lanes), dtype=torch.int32, device=device)
        width = -(-vocabulary // 16) * 16  # so that a row is read many bytes at once
        marks = torch.zeros((lanes, width), dtype=torch.int32, device=device)[:, :vocabulary]
        bias = torch.zeros((lanes, width), device=device)[:, :vocabulary]
        words[3] = -1  # reports nothing
        seed, drawn = longs
        kind, top_k, min_tokens, logprobs, token, *_ = words
        temperature, top_p, log_min_p, repetition, presence, frequency = words[5:].view(torch.float32)
        return cls(longs, words, seed, drawn, kind, top_k, min_tokens, logprobs, token, temperature, top_p, log_min_p,
                   repetition, presence, frequency, marks, bias)  # fmt: skip

    def write(
        self, rows: Indices, requests: Sequence[Request], end_of_text: int, *, drafts: Sequence[Sequence[int]] = ()
    ) -> None:
        """Set the lanes `rows` to draw the next tokens of these requests.

        With `drafts`, a sequence of tokens for each request, as many lanes after each are set to draw what follows
        its tokens.
        """
        for row, request in zip(rows.tolist(), requests, strict=True):
            kind = kind_of(request.params)
            if kind & MARKED:
                _put(self.marks[row], marks_of(request, end_of_text, self.marks.shape[1]))
            if kind & BIASED:
                _put(self.bias[row], bias_of(request, self.bias.shape[1]))
        longs = np.array([[request.seed, len(request.output)] for request in requests], np.int64)
        ints = np.array([_ints(request, self.marks.shape[1]) for request in requests], np.int32)
        floats = np.array([_floats(request.params) for request in requests], np.float32)
        columns = np.hstack((rows[:, None], longs, ints, floats.view(np.int32)))
        if drafts:
            columns = _repeated(columns, [1 + len(draft) for draft in drafts])
            for row, request, draft in zip(rows.tolist(), requests, drafts, strict=True):
                self._follow(row, kind_of(request.params), draft)
        lanes, longs_there, words_there = to_device(columns.T, self.marks.device).split((1, 2, 11))
        self.longs.index_copy_(1, lanes[0], longs_there)
        self.words.index_copy_(1, lanes[0], words_there.int())

    def _follow(self, row: int, kind: int, draft: Sequence[int]) -> None:
        """Set marks and bias of the lanes after `row` to those of lanes that have drawn one token more each."""
        if kind & MARKED:
            for at, token in enumerate(draft, row + 1):
                self.marks[at].copy_(self.marks[at - 1])
                self.marks[at, token] += ONE_DRAWN
        if kind & BIASED:
            self.bias[row + 1 : row + 1 + len(draft)].copy_(self.bias[row])


def _repeated(columns: NDArray[Any], sizes: Sequence[int]) -> NDArray[Any]:
    """Return each row of (R,14) lanes, longs and words as often as `sizes` say: for the next lane each time, which has
    drawn one token more.
    """
    repeated = columns.repeat(sizes, axis=0)
    place = np.concatenate([np.arange(size) for size in sizes])
    repeated[:, 0] += place
    repeated[:, 2] += place
    return repeated


def kind_of(params: SamplingParams) -> int:
    """Return what a request needs of sampling, as bits of `SamplingState.kind`."""
    sampled = params.effective_temperature > 0
    selected = sampled and (params.top_k > 0 or params.top_p < 1)
    penalties = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1
    marked = bool(penalties or params.min_tokens)
    biased = bool(params.logit_bias)
    rewritten = selected or marked or biased or (sampled and params.min_p > 0)
    return rewritten * REWRITTEN | selected * SELECTED | marked * MARKED | biased * BIASED


def marks_of(request: Request, end_of_text: int, vocabulary: int) -> NDArray[np.int32]:
    """Return a request's marks (V,)."""
    marks = np.bincount(np.array(request.output, np.int64), minlength=vocabulary).astype(np.int32) * ONE_DRAWN
    marks[list(request.prompt)] |= IN_PROMPT
    marks[banned_early(request.params, end_of_text)] |= BANNED
    return marks


def bias_of(request: Request, vocabulary: int) -> NDArray[np.float32]:
    """Return a request's logit_bias (V,)."""
    bias = np.zeros(vocabulary, np.float32)
    bias[list(request.params.logit_bias)] = list(request.params.logit_bias.values())
    return bias


def _ints(request: Request, vocabulary: int) -> list[int]:
    params = request.params
    top_k = params.top_k if params.top_k < vocabulary else 0
    logprobs = -1 if params.logprobs is None else params.logprobs
    return [kind_of(params), top_k, min(params.min_tokens, 2**31 - 1), logprobs, request.newest]


def _floats(params: SamplingParams) -> list[float]:
    log_min_p = params.log_min_p if params.effective_temperature else -np.inf
    return [params.effective_temperature, params.top_p, log_min_p, repetition_factor(params), params.presence_penalty,
            params.frequency_penalty]  # fmt: skip


def _put(row: Tensor, values: NDArray[np.generic]) -> None:
    """Copy values of the host to a row on the device, without waiting for either."""
    host = torch.from_numpy(values)
    row.copy_(host.pin_memory() if row.is_cuda else host, non_blocking=True)
