"""Open the data of a run, for training and validation: one prepared folder, or a mixture of several."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from thoughtbubbles.model import Tokenizer
from thoughtbubbles.training.data.loader import DocumentLoader, Loader, WindowLoader, document_cuts
from thoughtbubbles.training.data.mixture import Mixture, MixtureSet, read_mixture
from thoughtbubbles.training.data.prompt_mask import read_prompt_mask
from thoughtbubbles.training.data.token_file import Index, prompt_mask_check, read_tokenizer, read_tokens, token_check
from thoughtbubbles.training.data.verification import FileCheck
from thoughtbubbles.training.measures import Window, packed_windows


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Opened data. The same path, length and seed give the same windows, at any time and on any rank."""

    loader: Loader
    """The training windows."""
    validation: Mapping[str, list[Window]]
    """Held-out windows of each set by its name; `val` for a single folder."""
    weights: Mapping[str, float]
    """Each set's share of the training windows, summing to 1; also the weights of the validation loss."""
    tokenizer: Tokenizer
    """The tokenizer of all sets."""
    vocab_size: int
    """Number of ids of the tokenizer."""
    padded: bool
    """Whether windows may contain `PADDING`."""
    facts: dict[str, Any]
    """A description of the data, JSON-ready: stored in checkpoints, and compared when a run resumes."""
    unverified: list[FileCheck]
    """Checks of large files that have not run yet."""

    @classmethod
    def open(cls, path: Path, length: int, seed: int, root: Path | None = None) -> Self:
        """Return the data of a folder, or of a mixture's TOML file, for windows of `length` + 1 tokens.

        A mixture's folders are relative to `root` (None: to its file). Raises `ValueError` for data that is missing,
        changed since it was prepared, inconsistent, or too little. Large files are not verified: see `unverified`.
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
    """Verify the files of `parts`, but not large training files; return the checks of those.

    Validation files are verified at once, however large, because every validation reads them completely anyway.
    """
    later = []
    for part in parts:
        for split in ("train", "val"):
            checks = [token_check(part.data, split)]
            if part.learn == "answers":
                checks.append(prompt_mask_check(part.data, split))
            for check in checks:
                if split == "train" and check.large:
                    later.append(check)
                else:
                    check.run()
    return later


def _seed_of(name: str, seed: int) -> int:
    """Return a seed for each set that does not depend on the other sets."""
    return crc32(f"{seed} {name}".encode())


def _loader(part: MixtureSet, length: int, seed: int, tokenizer: Tokenizer) -> Loader:
    ids, check = read_tokens(part.data, "train"), token_check(part.data, "train").check_ids
    if part.form == "packed":
        return WindowLoader(ids, length, seed, check=check)
    return DocumentLoader(ids, length, seed, tokenizer.end_of_text, _prompt_mask(part, "train", len(ids)), check=check)


def _validation(part: MixtureSet, length: int, tokenizer: Tokenizer) -> list[Window]:
    windows = _held_out(part, length, tokenizer)
    if not windows:
        raise ValueError(f"data: {part.data / 'val.bin'} has nothing to predict: only empty documents, or prompts")
    return windows


def _held_out(part: MixtureSet, length: int, tokenizer: Tokenizer) -> list[Window]:
    ids = read_tokens(part.data, "val")
    if part.form == "packed":
        return packed_windows(ids, length)
    prompt = _prompt_mask(part, "val", len(ids))
    cuts = document_cuts(ids, length, tokenizer.end_of_text, prompt)
    return [Window(ids[a:b], b - a - 1, prompt=None if prompt is None else prompt[a:b]) for a, b in cuts]


def _prompt_mask(part: MixtureSet, split: str, tokens: int) -> NDArray[np.unsignedinteger[Any]] | None:
    return read_prompt_mask(part.data, split, tokens) if part.learn == "answers" else None
