"""Where the completion of one request stands in its grammar, and which tokens may come next."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from thoughtbubbles.engine.structured.compilation import reason

if TYPE_CHECKING:
    from llguidance import LLMatcher

_POOL = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="grammar")
"""Computes masks while the engine takes its next step: llguidance needs no interpreter lock."""


class GrammarState:
    """Follows one completion. The mask of its next token is computed on another thread from the token before on."""

    def __init__(self, matcher: "LLMatcher", vocabulary: int, on_failure: Callable[[], None]) -> None:
        """`matcher` belongs to this state from now on, and `vocabulary` is the number of token ids."""
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._on_failure = on_failure
        self._mask: Future[Tensor | str] = _POOL.submit(self._compute)

    def accept(self, token_id: int) -> None:
        """Advance by a token that `forbidden` allowed."""
        self._mask = _POOL.submit(self._advance, token_id)

    @property
    def failure(self) -> str | None:
        """Why no token can follow, because the grammar is too complex; None if one can. Waits for the mask."""
        mask = self._mask.result()
        return mask if isinstance(mask, str) else None

    @property
    def forbidden(self) -> Tensor:
        """(V,) whether each token must not come next; there is no `failure`, and one may. Waits for the mask.

        End-of-text may come where the text so far matches, and is the only one where nothing longer does.
        """
        mask = self._mask.result()
        assert isinstance(mask, Tensor), "a request whose grammar has failed draws no token"
        return mask

    def _advance(self, token_id: int) -> Tensor | str:
        self._matcher.consume_token(token_id)
        return self._compute()

    def _compute(self) -> Tensor | str:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            self._on_failure()
            return reason(self._matcher)
        return torch.from_numpy(np.unpackbits(bits, count=self._vocabulary, bitorder="little") == 0)
