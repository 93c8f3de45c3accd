"""Encode documents to token ids on several processes, in order."""

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
    """Encoded documents of one part."""

    ids: NDArray[np.unsignedinteger[Any]]
    """(tokens,): each document after an end-of-text."""
    prompt: NDArray[np.uint8]
    """(tokens,): 1 at prompt tokens, 0 at tokens to learn, which every end-of-text is."""
    documents: int
    """Number of documents."""
    bytes: int
    """UTF-8 bytes of their text."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A function that encodes documents, cheap to send to a process, which then loads the tokenizer itself."""

    tokenizer: Path
    """Ranks file."""
    tokenizer_sha256: str
    """SHA-256 of that file."""
    dtype: str
    """Type of the ids."""
    val_share: float
    """Share of the documents that is held out. A hash of the text decides, so equal documents stay together."""

    def __call__(self, documents: list[Document]) -> dict[str, Encoded]:
        """Return the encoded documents of `train` and of `val`."""
        held_out = [is_held_out(document.text, self.val_share) for document in documents]
        return {
            part: self._encode([each for each, out in zip(documents, held_out, strict=True) if out == (part == "val")])
            for part in ("train", "val")
        }

    def _encode(self, documents: list[Document]) -> Encoded:
        """Encode prompts and answers separately, as when a model continues a prompt."""
        tokenizer = _tokenizer(self.tokenizer, self.tokenizer_sha256)
        ids: list[NDArray[np.unsignedinteger[Any]]] = []
        prompt: list[NDArray[np.uint8]] = []
        for document in documents:
            for is_prompt, encoded in chain([(False, [tokenizer.end_of_text])], _pieces(tokenizer, document)):
                ids.append(np.array(encoded, dtype=self.dtype))
                prompt.append(np.full(len(encoded), is_prompt, dtype=np.uint8))
        size = sum(len(document.text.encode()) for document in documents)
        return Encoded(_joined(ids, self.dtype), _joined(prompt, "uint8"), len(documents), size)


def _pieces(tokenizer: Tokenizer, document: Document) -> Iterator[tuple[bool, list[int]]]:
    """Yield whether a piece is a prompt, and its ids; a piece with very long runs comes in several parts."""
    for text, is_prompt in document.pieces():
        for part in cut_runs(text):
            yield is_prompt, tokenizer.encode(part)


def _joined(arrays: list[NDArray[Any]], dtype: str) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)


def is_held_out(text: str, share: float) -> bool:
    """Return whether `text` is in the held-out `share` (0 … 1), as decided by its hash."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


def chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield `documents` in lists of a few megabytes, the work units of a process."""
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
    """Yield `function` of each item, in order, computed on `workers` processes; on this one for one worker or one item.

    Few items are in memory at once.
    """
    items = iter(items)
    first = list(islice(items, 2))
    items = chain(first, items)
    if workers == 1 or len(first) < 2:  # starting a process takes longer than encoding a chunk
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
    """Make this process exit with its parent, which cannot stop it when killed; it would wait for work forever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@lru_cache(maxsize=1)
def _tokenizer(path: Path, _sha256: str) -> Tokenizer:
    return Tokenizer.from_file(path)
