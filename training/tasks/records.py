"""Read JSON lines and check the type of their fields."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from thoughtbubbles.training.data.json_lines import read_json_lines

Value = TypeVar("Value", str, int, list[Any], dict[str, Any])


@dataclass(frozen=True)
class Record:
    """One JSON object of a file."""

    values: dict[str, Any]
    where: str
    """File and line, for messages."""

    def get(self, name: str, kind: type[Value]) -> Value:
        """Return the field `name`. Raise `ValueError` naming file and line if it is missing or of another type."""
        value = self.values.get(name)
        if not isinstance(value, kind):
            raise ValueError(f"{self.where}: needs a field {name!r} of type {kind.__name__}")
        return value

    def label(self, name: str = "label") -> int:
        """Return the number of the right choice, which may be text. Raise `ValueError` if it is missing."""
        value = self.values.get(name)
        if not str(value).isdecimal():
            raise ValueError(f"{self.where}: needs a field {name!r} with the number of the right choice")
        return int(str(value))


def read_records(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON-lines file, `.gz` or not. Raise `ValueError` naming a line that is not an object."""
    for value, where in read_json_lines(path):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: not an object")
        yield Record(value, where)
