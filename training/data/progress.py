"""The progress of a preparation, saved so that it continues after a kill and writes the same bytes."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from thoughtbubbles.model.files.atomic import write_file
from thoughtbubbles.model.files.untrusted import read_json_object

PROGRESS_FILE = "progress.json"


@dataclass
class Counts:
    """The size of a token file."""

    tokens: int = 0
    """Ids, including an end-of-text for each document."""
    bytes: int = 0
    """UTF-8 bytes of the text."""
    documents: int = 0

    def add(self, *, tokens: int, bytes: int, documents: int) -> None:  # noqa: A002 - the field's name
        """Add to the counts."""
        self.tokens += tokens
        self.bytes += bytes
        self.documents += documents


@dataclass
class Progress:
    """A plan, and how much of it is on the disk."""

    plan: dict[str, Any]
    """Everything that determines the bytes of the result, JSON-ready."""
    read: dict[str, int] = field(default_factory=lambda: {"train": 0, "val": 0})
    """Number of documents of each input that are encoded and written."""
    written: dict[str, Counts] = field(default_factory=lambda: {"train": Counts(), "val": Counts()})
    """The size of each token file at that time; bytes beyond it are an incomplete chunk."""

    @classmethod
    def of(cls, folder: Path, plan: dict[str, Any]) -> Self:
        """Return the progress of `plan` saved in `folder`; empty if there is none, or another plan's."""
        path = folder / PROGRESS_FILE
        saved = read_json_object(path) if path.is_file() else {}
        if saved.get("plan") != plan:
            return cls(plan)
        try:
            read = {part: int(saved["read"][part]) for part in ("train", "val")}
            return cls(plan, read, {part: Counts(**saved["written"][part]) for part in ("train", "val")})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); remove it and both token files to start over") from error

    def save(self, folder: Path) -> None:
        """Write the progress to `folder`, all or nothing. The token files must be on the disk before."""
        write_file(folder / PROGRESS_FILE, json.dumps(asdict(self)).encode())
