"""Draws in the native library: a token for each request from its logits, with everything that it may ask for.

`engine.sampler` defines what is drawn, and draws where the last bits of the noise's logarithms could decide.

Letters: L rows of logits, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from thoughtbubbles.engine.cache.ledger import Ledger
from thoughtbubbles.engine.native import library as c
from thoughtbubbles.engine.native.forward import NativeForward
from thoughtbubbles.engine.prompt_report import Scored
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.sampler import Drawn, Sampler, may_draw
from thoughtbubbles.engine.sampling import banned_early, repetition_factor
from thoughtbubbles.engine.sampling_params import MAX_LOGPROBS


class NativeSampler:
    """Draws tokens for requests that have a row of the ledger, on the threads of the forward pass."""

    def __init__(self, forward: NativeForward, ledger: Ledger, host: Sampler) -> None:
        """`host` says which tokens there are, and draws what the library leaves undecided."""
        self._forward, self._ledger, self._host = forward, ledger, host
        rows = len(ledger.generation)
        self._table = (c.Sampling * rows)()
        """By row of the ledger, how its request draws."""
        self._kept: list[object] = [None] * rows
        """What the table has pointers to."""
        self._written = np.zeros_like(ledger.generation)
        """The generation of each row when its entry was written."""
        self._draws = c.Draws(
            vocabulary=host.vocabulary, sampling=self._table, ids=ledger.ids.ctypes.data, stride=ledger.ids.shape[1]
        )
        self._allocate(rows)

    def draw(self, requests: Sequence[Request], logits: Tensor, guessed: Sequence[int]) -> Drawn:
        """As `Sampler.draw`, from contiguous float32 logits (L,V), whose tokens are all in the ledger."""
        L, draws = len(requests), self._draws
        if len(self._lanes) < L:
            self._allocate(L)
        self._lanes[:L] = [request.state.row for request in requests if request.state]
        self._assign(requests)
        drawing = [may_draw(request) for request in requests]
        self._position[:L] = [
            len(request.output) + guesses if draws else -1
            for request, guesses, draws in zip(requests, guessed, drawing, strict=True)
        ]
        draws.rows, draws.logits = L, logits.data_ptr()
        forbidden = self._forbid(requests, drawing)  # lives while it is read
        draws.forbidden = None if forbidden is None else forbidden.ctypes.data
        self._forward.draw(draws)
        ids = self._drawn[:L].tolist()
        drawn = Drawn(
            [token != c.BROKEN for token in ids],
            [token if token >= 0 and draws else None for token, draws in zip(ids, drawing, strict=True)],
            [self._scored(i, request) if draws and ids[i] >= 0 else None
             for i, (request, draws) in enumerate(zip(requests, drawing, strict=True))],
        )  # fmt: skip
        if c.UNDECIDED in ids:
            rows = [i for i, token in enumerate(ids) if token == c.UNDECIDED]
            drawn.fill(rows, self._host.draw([requests[i] for i in rows], logits[rows], [guessed[i] for i in rows]))
        return drawn

    def _assign(self, requests: Sequence[Request]) -> None:
        """Have the rows of the ledger draw for these requests, unless they do so already."""
        lanes = self._lanes[: len(requests)]
        generations = self._ledger.generation[lanes]
        for i in np.flatnonzero(self._written[lanes] != generations).tolist():
            self._table[lanes[i]], self._kept[lanes[i]] = self._entry(requests[i])
            self._written[lanes[i]] = generations[i]

    def _entry(self, request: Request) -> tuple[c.Sampling, object]:
        """Return how a request draws, and what that points to."""
        params = request.params
        biased = np.array(list(params.logit_bias), np.int32)
        bias = np.array(list(params.logit_bias.values()), np.float32)
        banned = np.array(list({*banned_early(params, self._host.end_of_text)}), np.int32)
        return c.Sampling(
            seed=request.seed, temperature=params.effective_temperature, top_p=params.top_p,
            log_min_p=params.log_min_p, repetition=repetition_factor(params), presence=params.presence_penalty,
            frequency=params.frequency_penalty, top_k=params.top_k, min_tokens=min(params.min_tokens, 2**31 - 1),
            logprobs=-1 if params.logprobs is None else params.logprobs, prompt=len(request.prompt),
            num_biased=len(biased), num_banned=len(banned), biased=biased.ctypes.data, bias=bias.ctypes.data,
            banned=banned.ctypes.data,
        ), (biased, bias, banned)  # fmt: skip

    def _forbid(
        self, requests: Sequence[Request], drawing: Sequence[bool]
    ) -> "np.ndarray[tuple[int], np.dtype[np.uint64]] | None":
        """Return where what each grammar forbids lies (L,), 0 for requests without; None if all are. Waits for it."""
        if all(request.grammar is None for request in requests):
            return None
        return np.array(
            [request.grammar.forbidden.data_ptr() if request.grammar and draws else 0
             for request, draws in zip(requests, drawing, strict=True)], np.uint64
        )  # fmt: skip

    def _scored(self, i: int, request: Request) -> Scored | None:
        top = request.params.logprobs
        if top is None:
            return None
        logprob, *likeliest = self._logprobs[i, : 1 + min(top, self._host.vocabulary)].tolist()
        return logprob, tuple(zip(self._likeliest[i].tolist(), likeliest, strict=False))

    def _allocate(self, rows: int) -> None:
        """Allocate what a draw from so many rows reads and writes."""
        self._lanes, self._drawn = np.zeros((2, rows), np.int32)
        self._position = np.zeros(rows, np.int64)
        self._logprobs = np.zeros((rows, 1 + MAX_LOGPROBS), np.float32)
        self._likeliest = np.zeros((rows, MAX_LOGPROBS), np.int32)
        for name in ("lanes", "drawn", "position", "logprobs", "likeliest"):
            setattr(self._draws, name, getattr(self, f"_{name}").ctypes.data)
