"""How far a preparation has come: enough to go on after a kill and write the same bytes."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from thoughtbubbles.model.files.atomic import write_file
from thoughtbubbles.model.files.untrusted import read_json_object

PROGRESS_FILE = "progress.json"


@dataclass
class Counts:
    """What a token file holds."""

    tokens: int = 0
    """Ids, an end-of-text for each document included."""
    bytes: int = 0
    """Of the text in UTF-8."""
    documents: int = 0
    """Documents."""

    def add(self, *, tokens: int, bytes: int, documents: int) -> None:  # noqa: A002 - the field's name
        """Count some more."""
        self.tokens += tokens
        self.bytes += bytes
        self.documents += documents


@dataclass
class Progress:
    """The plan, and what of it is on the disk."""

    plan: dict[str, Any]
    """Whatever decides the bytes that are made, as JSON."""
    read: dict[str, int] = field(default_factory=lambda: {"train": 0, "val": 0})
    """Documents of each input that are encoded and written."""
    written: dict[str, Counts] = field(default_factory=lambda: {"train": Counts(), "val": Counts()})
    """What each token file had by then; anything after is of a chunk that was cut off."""

    @classmethod
    def of(cls, folder: Path, plan: dict[str, Any]) -> Self:
        """What `folder` says of `plan`; nothing done where it tells of none, or of another."""
        path = folder / PROGRESS_FILE
        saved = read_json_object(path) if path.is_file() else {}
        if saved.get("plan") != plan:
            return cls(plan)
        try:
            read = {part: int(saved["read"][part]) for part in ("train", "val")}
            return cls(plan, read, {part: Counts(**saved["written"][part]) for part in ("train", "val")})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); remove it to begin anew") from error

    def save(self, folder: Path) -> None:
        """Write it, all or nothing. The token files must be on the disk before."""
        write_file(folder / PROGRESS_FILE, json.dumps(asdict(self)).encode())
