"""Batches of token windows, as a function of the seed and the step alone: resuming needs no state of the loader.

Ranks need none either: what R ranks learn from as batch n, B windows each, are batches n·R … n·R + R - 1 of size B, the
same windows of the stream for every R and B of one product.
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
"""Raises for ids that are none of the vocabulary; is given where in their file they begin."""
PADDING = -1
"""Stands in a window where its document has ended: no input, and no target of the loss."""


def only_read(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """How a window tells that tokens are inputs and no targets: each id as a number below `PADDING`."""
    return PADDING - 1 - ids


def inputs(windows: Tensor) -> Tensor:
    """The ids that a model reads of windows, any shape: what is only read as itself, padding as 0."""
    return torch.where(windows < PADDING, PADDING - 1 - windows, windows).clamp(min=0)


def targets(windows: Tensor) -> Tensor:
    """The ids that a model learns to predict of windows, any shape: `PADDING` where it does not."""
    return windows.clamp(min=PADDING)


class Loader(ABC):
    """An endless stream of windows that is the same for everyone who asks."""

    @abstractmethod
    def window(self, index: int) -> NDArray[np.int64]:
        """Window `index` (from 0) of the stream, (L+1,): L inputs and the target of the last."""

    def batch(self, number: int, size: int) -> Tensor:
        """Batch `number` (from 0) of `size` windows of the stream, (size,L+1) int64."""
        stream = range(number * size, (number + 1) * size)
        return torch.from_numpy(np.stack([self.window(index) for index in stream]))


class WindowLoader(Loader):
    """Packed: windows of L + 1 tokens that tile the token file from a random offset, shuffled.

    Offset and order are drawn anew for every pass, so that no pass cuts the text where another did.
    Raises `ValueError` when the file is too short for one window at every offset.
    """

    def __init__(
        self, ids: NDArray[np.unsignedinteger[Any]], length: int, seed: int, *, check: CheckIds = lambda _ids, _at: None
    ) -> None:
        """`check` raises for ids of a window, and is told where they begin."""
        self._ids = ids
        self._length = length
        self._seed = seed
        self._check = check
        self.windows_per_pass = (len(ids) - length) // length
        if self.windows_per_pass < 1:
            raise ValueError(f"data: {len(ids)} training tokens are too few for windows of block_size {length}")
        self._starts = lru_cache(maxsize=2)(self._draw_starts)  # a batch may straddle two passes

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
    """Padded: one document a window, or a part of one that is longer, in an order drawn anew for every pass.

    A window ends with the end-of-text that follows its document where it has room, and with `PADDING` after that.
    `given` (tokens,) tells by 1 what is only read; windows of nothing else are left out.
    """

    def __init__(
        self,
        ids: NDArray[np.unsignedinteger[Any]],
        length: int,
        seed: int,
        end_of_text: int,
        given: NDArray[np.unsignedinteger[Any]] | None = None,
        *,
        check: CheckIds = lambda _ids, _at: None,
    ) -> None:
        self._ids = ids
        self._check = check
        self._length = length
        self._seed = seed
        self._given = given
        self._cuts = document_cuts(ids, length, end_of_text, given)
        if not len(self._cuts):
            raise ValueError("data: there is no document to learn from")
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def window(self, index: int) -> NDArray[np.int64]:
        """As `Loader.window`."""
        number, position = divmod(index, len(self._cuts))
        start, end = map(int, self._cuts[self._order(number)[position]])
        self._check(self._ids[start:end], start)
        window = np.full(self._length + 1, PADDING, dtype=np.int64)
        window[: end - start] = self._ids[start:end]
        if self._given is not None:
            hidden = np.flatnonzero(self._given[start:end])
            window[hidden] = only_read(window[hidden])
        return window

    def _draw_order(self, number: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._seed, number)).permutation(len(self._cuts))


def document_cuts(
    ids: NDArray[np.unsignedinteger[Any]],
    length: int,
    end_of_text: int,
    given: NDArray[np.unsignedinteger[Any]] | None = None,
) -> NDArray[np.int64]:
    """Where the documents of a token file lie, cut into windows: (windows,2) of start and end in ids (tokens,).

    A document reaches from its end-of-text to the one that follows. One of more than L + 1 tokens is tiled, so that
    each of its tokens but the first is a target once. A window without a target, all being `given`, is none.
    """
    at = np.flatnonzero(ids == end_of_text)
    starts = at if len(at) and at[0] == 0 else np.concatenate([[0], at])
    ends = np.append(starts[1:] + 1, len(ids))
    counts = -(-(ends - starts - 1) // length)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.repeat(starts, counts) + within * length
    cuts = np.stack([first, np.minimum(first + length + 1, np.repeat(ends, counts))], axis=1)
    return cuts if given is None else cuts[_learned(given, cuts) > 0]


def _learned(given: NDArray[np.unsignedinteger[Any]], cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(windows,): how many targets each window of `cuts` (windows,2) has that are not given."""
    learned = np.append(given == 0, False)  # one more, since a window may end where the file does
    edges = np.stack([cuts[:, 0] + 1, cuts[:, 1]], axis=1)
    return np.add.reduceat(learned, edges.ravel(), dtype=np.int64)[::2]
