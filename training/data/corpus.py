"""What a run learns from and is measured on: one prepared folder, or a mixture of several."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from thoughtbubbles.model import Tokenizer
from thoughtbubbles.training.data.given import read_given
from thoughtbubbles.training.data.loader import DocumentLoader, Loader, WindowLoader, document_cuts
from thoughtbubbles.training.data.mixture import Mixture, MixtureSet, read_mixture
from thoughtbubbles.training.data.token_file import Index, given_check, read_tokenizer, read_tokens, token_check
from thoughtbubbles.training.data.verification import FileCheck
from thoughtbubbles.training.measures import Window, packed_windows


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Opened data. The same path, length and seed give the same windows, whenever and on whatever rank."""

    loader: Loader
    """The windows to learn from."""
    validation: Mapping[str, list[Window]]
    """Held-out windows of each set by its name; of a folder alone, under `val`."""
    weights: Mapping[str, float]
    """Each set's share of the training windows, 1 in sum: the weights of a validation loss over all sets."""
    tokenizer: Tokenizer
    """What the ids mean, in all sets."""
    vocab_size: int
    """Ids that the tokenizer has."""
    padded: bool
    """Whether windows can hold `PADDING`."""
    facts: dict[str, Any]
    """What a checkpoint remembers of the data and a resumed run must find again, JSON-ready."""
    unverified: list[FileCheck]
    """Checks of large files, still to be made."""

    @classmethod
    def open(cls, path: Path, length: int, seed: int, root: Path | None = None) -> Self:
        """A folder, or a TOML file of a mixture, for windows of `length` + 1 tokens.

        `root` is what a mixture's folders are relative to (None: its file). Raises `ValueError` for data that is not
        there, is not what was prepared, does not fit together, or is too little. Large files are left to `unverified`.
        """
        if path.suffix == ".toml":
            return cls._open_mixture(path, read_mixture(path, root), length, seed)
        return cls._open_folder(path, length, seed)

    @classmethod
    def _open_folder(cls, folder: Path, length: int, seed: int) -> Self:
        index, part = Index.read(folder), MixtureSet(data=folder, weight=1.0)
        tokenizer = read_tokenizer(folder)
        return cls(
            loader=_loader(part, length, seed, tokenizer),
            validation={"val": _validation(part, length, tokenizer)},
            weights={"val": 1.0},
            tokenizer=tokenizer,
            vocab_size=index.vocab_size,
            padded=False,
            facts=index.to_dict(),
            unverified=_verified([part]),
        )

    @classmethod
    def _open_mixture(cls, path: Path, sets: Mapping[str, MixtureSet], length: int, seed: int) -> Self:
        indices = {name: Index.read(each.data) for name, each in sets.items()}
        first = next(iter(sets))
        for name, index in indices.items():
            if index.tokenizer_sha256 != indices[first].tokenizer_sha256:
                raise ValueError(f"data: {path}: {name} has another tokenizer than {first}")
        tokenizer, *_ = [read_tokenizer(each.data) for each in sets.values()]
        total = sum(each.weight for each in sets.values())
        loaders = [_loader(each, length, _seed_of(name, seed), tokenizer) for name, each in sets.items()]
        return cls(
            loader=Mixture(loaders, [each.weight for each in sets.values()], seed),
            validation={name: _validation(each, length, tokenizer) for name, each in sets.items()},
            weights={name: each.weight / total for name, each in sets.items()},
            tokenizer=tokenizer,
            vocab_size=indices[first].vocab_size,
            padded=any(each.form == "padded" for each in sets.values()),
            facts={
                "weights": {name: each.weight for name, each in sets.items()},
                "forms": {name: each.form for name, each in sets.items()},
                "learn": {name: each.learn for name, each in sets.items()},
                "sets": {name: index.to_dict() for name, index in indices.items()},
            },
            unverified=_verified(sets.values()),
        )


def _verified(parts: Iterable[MixtureSet]) -> list[FileCheck]:
    """Verify what training reads of `parts`, but for large files to learn from: their checks are returned.

    What is validated on is read as a whole each time, so verifying it takes no longer than that.
    """
    later = []
    for part in parts:
        for split in ("train", "val"):
            checks = [token_check(part.data, split)]
            if part.learn == "answers":
                checks.append(given_check(part.data, split))
            for check in checks:
                if split == "train" and check.large:
                    later.append(check)
                else:
                    check.run()
    return later


def _seed_of(name: str, seed: int) -> int:
    """Of its own for each set, and the same whatever other sets there are."""
    return crc32(f"{seed} {name}".encode())


def _loader(part: MixtureSet, length: int, seed: int, tokenizer: Tokenizer) -> Loader:
    ids, check = read_tokens(part.data, "train"), token_check(part.data, "train").check_ids
    if part.form == "packed":
        return WindowLoader(ids, length, seed, check=check)
    return DocumentLoader(ids, length, seed, tokenizer.end_of_text, _given(part, "train", len(ids)), check=check)


def _validation(part: MixtureSet, length: int, tokenizer: Tokenizer) -> list[Window]:
    ids = read_tokens(part.data, "val")
    if part.form == "packed":
        return packed_windows(ids, length)
    given = _given(part, "val", len(ids))
    cuts = document_cuts(ids, length, tokenizer.end_of_text, given)
    return [Window(ids[a:b], b - a - 1, given=None if given is None else given[a:b]) for a, b in cuts]


def _given(part: MixtureSet, split: str, tokens: int) -> NDArray[np.unsignedinteger[Any]] | None:
    return read_given(part.data, split, tokens) if part.learn == "answers" else None
