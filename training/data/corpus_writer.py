"""Write documents as a prepared folder: the tokenizer, both token files, and the index last."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from thoughtbubbles.model import Tokenizer, lock_file
from thoughtbubbles.model.files.atomic import write_file
from thoughtbubbles.training.data.documents import Documents, sha256
from thoughtbubbles.training.data.encoding import Encoded, Encoder, chunks, is_held_out, ordered_map
from thoughtbubbles.training.data.progress import PROGRESS_FILE, Progress
from thoughtbubbles.training.data.prompt_mask import finish_prompt_mask, prompt_mask_path, write_prompt_mask
from thoughtbubbles.training.data.token_file import INDEX_FILE, TOKENIZER_FILE, Index, Split, is_published
from thoughtbubbles.training.data.vocabulary import train_vocabulary

LOCK_FILE = ".prepare.lock"
_NEW_TOKENIZER_FILE = f".{TOKENIZER_FILE}.partial"
MAX_WORKERS = 1024
"""Most processes that encode; all of them start at once."""


@contextmanager
def only_preparation(out: Path) -> Iterator[None]:
    """Keep other preparations out of the folder `out` inside the block. Raise `ValueError` if one is in it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK_FILE).open("ab") as file:
        if not lock_file(file):
            raise ValueError(f"out: another preparation is writing to {out}; wait for it, or choose another folder")
        yield


class CorpusWriter:
    """Writes one prepared folder. After a kill, a new writer with the same inputs continues where it stopped."""

    def __init__(
        self, inputs: Mapping[str, Documents], out: Path, tokenizer: str | int, *, val_share: float, workers: int
    ) -> None:
        """Start or continue the folder `out`.

        `inputs` has `train`, and `val` unless `val_share` of the training documents is to be held out. `tokenizer` is a
        path, a name, or the number of ids of a new vocabulary. Neither `workers` nor an interruption changes a byte of
        the result. Raises `ValueError` for unusable input, and if `out` has published token files. A finished folder in
        `out` is replaced, but not before the tokenizer is made: until then most mistakes are found.
        """
        if not 0 < val_share < 1:
            raise ValueError(f"val_share must be above 0 and below 1, not {val_share}")
        if not 1 <= workers <= MAX_WORKERS:
            raise ValueError(f"workers must be from 1 to {MAX_WORKERS}, not {workers}")
        if is_published(out) and not (out / INDEX_FILE).exists():
            raise ValueError(f"out: {out} has token files that `prepare` did not write; choose another folder")
        self._inputs = inputs
        self._out = out
        self._val_share = 0.0 if "val" in inputs else val_share
        self._workers = workers
        self._sources = {part: documents.sources() for part, documents in inputs.items()}
        self._progress = Progress.of(out, self._plan(tokenizer))
        out.mkdir(parents=True, exist_ok=True)
        starts = not any(self._progress.read.values())
        if starts:
            self._write_tokenizer(tokenizer, out / _NEW_TOKENIZER_FILE)
        self._progress.save(out)  # before the index is removed, so that this folder is never taken for a published one
        (out / INDEX_FILE).unlink(missing_ok=True)
        if starts:
            (out / _NEW_TOKENIZER_FILE).replace(out / TOKENIZER_FILE)
        self._encoder = self._make_encoder()

    def write(self) -> Index:
        """Encode the documents that are not encoded yet, and return the index."""
        with ExitStack() as stack:
            files = {part: stack.enter_context(self._open(part)) for part in ("train", "val")}
            for part, documents in self._inputs.items():
                for encoded in self._encoded(part, documents):
                    self._append(files, part, encoded)
            index = self._index()
            write_file(self._out / INDEX_FILE, (json.dumps(index.to_dict(), indent=1) + "\n").encode())
            (self._out / PROGRESS_FILE).unlink()
        return index

    def _plan(self, tokenizer: str | int) -> dict[str, object]:
        """Return everything that determines the bytes of the result; a ranks file is represented by its hash."""
        wanted = sha256(Path(tokenizer)) if isinstance(tokenizer, str) and Path(tokenizer).is_file() else tokenizer
        sources = {part: [list(each) for each in files.items()] for part, files in self._sources.items()}  # in order
        return {"tokenizer": wanted, "val_share": self._val_share, "sources": sources}

    def _make_encoder(self) -> Encoder:
        path = self._out / TOKENIZER_FILE
        dtype = "uint16" if Tokenizer.from_file(path).vocab_size <= 2**16 else "uint32"
        return Encoder(tokenizer=path, tokenizer_sha256=sha256(path), dtype=dtype, val_share=self._val_share)

    def _write_tokenizer(self, wanted: str | int, path: Path) -> None:
        if isinstance(wanted, str):
            Tokenizer.from_name_or_file(wanted).save(path)
            return
        texts = (document.text for document in self._inputs["train"].read())
        texts = (text for text in texts if not is_held_out(text, self._val_share))
        train_vocabulary(tqdm(texts, desc="vocabulary", unit=" documents", disable=None), wanted, path)

    def _open(self, part: str) -> BinaryIO:
        """Open a token file for appending, truncated to the recorded progress; a new file if that is none."""
        path = self._out / f"{part}.bin"
        size = self._progress.written[part].tokens * np.dtype(self._encoder.dtype).itemsize
        if not size:
            prompt_mask_path(self._out, part).unlink(missing_ok=True)
            path.unlink(missing_ok=True)  # runs keep the file that they read
            return path.open("wb")
        path.touch()
        if path.stat().st_size < size:
            remedy = f"remove {PROGRESS_FILE} and both token files to start over"
            raise ValueError(f"{path} is shorter than {PROGRESS_FILE} says; {remedy}")
        os.truncate(path, size)
        return path.open("ab")

    def _encoded(self, source: str, documents: Documents) -> Iterator[dict[str, Encoded]]:
        """Yield the encoded chunks of an input, with a progress bar in a terminal."""
        encoder = self._encoder if source == "train" else replace(self._encoder, val_share=1.0)
        first = self._progress.read[source]
        with tqdm(desc=source, total=documents.total, initial=first, unit=" documents", disable=None) as bar:
            for encoded in ordered_map(encoder, chunks(documents.read(first)), self._workers):
                yield encoded
                bar.update(self._progress.read[source] - bar.n)
                bar.set_postfix(tokens=f"{sum(c.tokens for c in self._progress.written.values()):,}")

    def _append(self, files: Mapping[str, BinaryIO], source: str, encoded: dict[str, Encoded]) -> None:
        for part, (ids, prompt, documents, size) in encoded.items():
            if prompt.any():
                write_prompt_mask(self._out, part, prompt, self._progress.written[part].tokens)
            files[part].write(ids.tobytes())
            files[part].flush()
            os.fsync(files[part].fileno())
            self._progress.written[part].add(tokens=len(ids), bytes=size, documents=documents)
            self._progress.read[source] += documents
        self._progress.save(self._out)

    def _index(self) -> Index:
        return Index(
            dtype=self._encoder.dtype,
            vocab_size=Tokenizer.from_file(self._encoder.tokenizer).vocab_size,
            tokenizer_sha256=self._encoder.tokenizer_sha256,
            train=self._split("train"),
            val=self._split("val"),
        )

    def _split(self, part: str) -> Split:
        counts, sources = self._progress.written[part], self._sources.get(part, self._sources["train"])
        if not counts.documents:
            first, *others = sources
            named = f"{first} and {len(others)} more" if others else first
            held_out = f"; {self._val_share:.2%} are held out, which --val-share sets" if self._val_share else ""
            raise ValueError(f"{named}: no documents for {part}.bin{held_out}")
        mask = finish_prompt_mask(self._out, part, counts.tokens)
        return Split(**asdict(counts), sha256=sha256(self._out / f"{part}.bin"), sources=sources, given_sha256=mask)
