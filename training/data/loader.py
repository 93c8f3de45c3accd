"""Load batches of token windows that depend only on the seed and the step: resuming needs no loader state.

Ranks need none either. Step n of R ranks with B windows each reads batches n·R … n·R + R - 1 of size B, which are the
same windows for every R and B with the same product.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CheckIds = Callable[[NDArray[np.unsignedinteger[Any]], int], None]
"""A function of ids and their offset in the file that raises if an id is outside the vocabulary."""
PADDING = -1
"""Fills a window after the end of its document: neither an input nor a target."""


def as_prompt(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `ids` marked as prompt tokens, inputs but not targets: each as a number below `PADDING`."""
    return PADDING - 1 - ids


def inputs(windows: Tensor) -> Tensor:
    """Return the input ids of windows of any shape: prompt tokens unmarked, padding as 0."""
    return torch.where(windows < PADDING, PADDING - 1 - windows, windows).clamp(min=0)


def targets(windows: Tensor) -> Tensor:
    """Return the target ids of windows of any shape; `PADDING` at prompt tokens and padding."""
    return windows.clamp(min=PADDING)


class Loader(ABC):
    """An endless, deterministic stream of windows."""

    @abstractmethod
    def window(self, index: int) -> NDArray[np.int64]:
        """Return window `index` (from 0) of the stream, (L+1,): L inputs and the target of the last."""

    def batch(self, number: int, size: int) -> Tensor:
        """Return batch `number` (from 0) of the stream in batches of `size` windows: (size,L+1) int64."""
        stream = range(number * size, (number + 1) * size)
        return torch.from_numpy(np.stack([self.window(index) for index in stream]))


class WindowLoader(Loader):
    """Packed windows: L + 1 tokens each, tiling the token file from a random offset, shuffled.

    Every pass has its own offset and order, so that passes cut the text at different places.
    Raises `ValueError` if the file is too short for one window at every offset.
    """

    def __init__(
        self, ids: NDArray[np.unsignedinteger[Any]], length: int, seed: int, *, check: CheckIds = lambda _ids, _at: None
    ) -> None:
        """Read windows of `ids` (tokens,). `check` is called with the ids of each window and their offset."""
        self._ids = ids
        self._length = length
        self._seed = seed
        self._check = check
        self.windows_per_pass = (len(ids) - length) // length
        if self.windows_per_pass < 1:
            raise ValueError(f"data: {len(ids)} training tokens are too few for windows of block_size {length}")
        self._starts = lru_cache(maxsize=2)(self._draw_starts)  # a batch may span two passes

    def window(self, index: int) -> NDArray[np.int64]:
        """As `Loader.window`."""
        number, position = divmod(index, self.windows_per_pass)
        start = int(self._starts(number)[position])
        ids = self._ids[start : start + self._length + 1]
        self._check(ids, start)
        return ids.astype(np.int64)

    def _draw_starts(self, number: int) -> NDArray[np.int64]:
        generator = np.random.default_rng((self._seed, number))
        offset = generator.integers(self._length)
        return offset + self._length * generator.permutation(self.windows_per_pass)


class DocumentLoader(Loader):
    """Padded windows: one document each, or a part of a longer one, in a new random order for every pass.

    The end-of-text that follows the document is included if it fits; `PADDING` fills the rest. `prompt` (tokens,) is 1
    at prompt tokens; windows of prompt tokens only are left out.
    """

    def __init__(
        self,
        ids: NDArray[np.unsignedinteger[Any]],
        length: int,
        seed: int,
        end_of_text: int,
        prompt: NDArray[np.unsignedinteger[Any]] | None = None,
        *,
        check: CheckIds = lambda _ids, _at: None,
    ) -> None:
        self._ids = ids
        self._check = check
        self._length = length
        self._seed = seed
        self._prompt = prompt
        self._cuts = document_cuts(ids, length, end_of_text, prompt)
        if not len(self._cuts):
            raise ValueError("data: there is no document to train on")
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def window(self, index: int) -> NDArray[np.int64]:
        """As `Loader.window`."""
        number, position = divmod(index, len(self._cuts))
        start, end = map(int, self._cuts[self._order(number)[position]])
        self._check(self._ids[start:end], start)
        window = np.full(self._length + 1, PADDING, dtype=np.int64)
        window[: end - start] = self._ids[start:end]
        if self._prompt is not None:
            masked = np.flatnonzero(self._prompt[start:end])
            window[masked] = as_prompt(window[masked])
        return window

    def _draw_order(self, number: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._seed, number)).permutation(len(self._cuts))


def document_cuts(
    ids: NDArray[np.unsignedinteger[Any]],
    length: int,
    end_of_text: int,
    prompt: NDArray[np.unsignedinteger[Any]] | None = None,
) -> NDArray[np.int64]:
    """Return start and end in ids (tokens,) of the windows of a token file's documents: (windows,2).

    A document extends from its end-of-text to the next one, inclusive. If it has more than L + 1 tokens, windows tile
    it, so that each of its tokens but the first is a target once. Windows of prompt tokens only are left out.
    """
    at = np.flatnonzero(ids == end_of_text)
    starts = at if len(at) and at[0] == 0 else np.concatenate([[0], at])
    ends = np.append(starts[1:] + 1, len(ids))
    counts = -(-(ends - starts - 1) // length)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.repeat(starts, counts) + within * length
    cuts = np.stack([first, np.minimum(first + length + 1, np.repeat(ends, counts))], axis=1)
    return cuts if prompt is None else cuts[_count_targets(prompt, cuts) > 0]


def _count_targets(prompt: NDArray[np.unsignedinteger[Any]], cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (windows,) the number of targets, prompt tokens excluded, of each window of `cuts` (windows,2)."""
    is_target = np.append(prompt == 0, False)  # one more, because a window may end at the end of the file
    edges = np.stack([cuts[:, 0] + 1, cuts[:, 1]], axis=1)
    return np.add.reduceat(is_target, edges.ravel(), dtype=np.int64)[::2]
