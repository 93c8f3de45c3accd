"""Texts to token ids in processes of their own, in the order they came."""

import hashlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from thoughtbubbles.model import Tokenizer
from thoughtbubbles.model.text.runs import cut_runs
from thoughtbubbles.training.data.rows import Document

Item = TypeVar("Item")
Result = TypeVar("Result")
_CHARACTERS_AT_ONCE = 1 << 21


class Encoded(NamedTuple):
    """Some documents of one part."""

    ids: NDArray[np.unsignedinteger[Any]]
    """(tokens,): each document after an end-of-text."""
    given: NDArray[np.uint8]
    """(tokens,): 1 where a token is only given, 0 where it is to be learned, as every end-of-text is."""
    documents: int
    """How many."""
    bytes: int
    """Of their text in UTF-8."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What a process needs to know: it is sent there, the tokenizer is not."""

    tokenizer: Path
    """Ranks file."""
    tokenizer_sha256: str
    """Of that file."""
    dtype: str
    """Of the ids."""
    val_share: float
    """Share of the documents that is held out, chosen by their text, so that no two equal ones are parted."""

    def __call__(self, documents: list[Document]) -> dict[str, Encoded]:
        """What of `documents` belongs to `train` and to `val`."""
        held_out = [is_held_out(document.text, self.val_share) for document in documents]
        return {
            part: self._encode([each for each, out in zip(documents, held_out, strict=True) if out == (part == "val")])
            for part in ("train", "val")
        }

    def _encode(self, documents: list[Document]) -> Encoded:
        """Pieces that are given and pieces that are not are encoded apart, as when a model continues the one."""
        tokenizer = _tokenizer(self.tokenizer, self.tokenizer_sha256)
        ids: list[NDArray[np.unsignedinteger[Any]]] = []
        given: list[NDArray[np.uint8]] = []
        for document in documents:
            for only_given, encoded in chain([(False, [tokenizer.end_of_text])], _pieces(tokenizer, document)):
                ids.append(np.array(encoded, dtype=self.dtype))
                given.append(np.full(len(encoded), only_given, dtype=np.uint8))
        size = sum(len(document.text.encode()) for document in documents)
        return Encoded(_joined(ids, self.dtype), _joined(given, "uint8"), len(documents), size)


def _pieces(tokenizer: Tokenizer, document: Document) -> Iterator[tuple[bool, list[int]]]:
    """Whether a piece is only given, and its ids; of what has no space for very long, in several parts."""
    for text, only_given in document.pieces():
        for part in cut_runs(text):
            yield only_given, tokenizer.encode(part)


def _joined(arrays: list[NDArray[Any]], dtype: str) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)


def is_held_out(text: str, share: float) -> bool:
    """Whether `text` is of the held-out `share` (0 … 1): a hash of it decides."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


def chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """`documents` in lists of a few megabytes: what a process is given at once."""
    chunk: list[Document] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= _CHARACTERS_AT_ONCE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`function` of each item in order, on `workers` processes, or on this one if there is one worker or one item.

    Few items are held at once.
    """
    items = iter(items)
    first = list(islice(items, 2))
    items = chain(first, items)
    if workers == 1 or len(first) < 2:  # to start a process takes longer than a chunk
        yield from map(function, items)
        return
    context = multiprocessing.get_context("forkserver")  # a fork of this process would copy its threads' locks
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, context, initializer=_end_with_parent)
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A killed parent cannot tell its processes, and they would wait for work for ever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@lru_cache(maxsize=1)
def _tokenizer(path: Path, _sha256: str) -> Tokenizer:
    return Tokenizer.from_file(path)
