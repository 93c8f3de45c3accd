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

    def texts(self, name: str) -> tuple[str, ...]:
        """Return the field `name`, a list of texts. Raise `ValueError` if it is none, or empty."""
        values = self.get(name, list)
        if not values or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{self.where}: needs a field {name!r}, a list of texts")
        return tuple(values)

    def record(self, name: str) -> "Record":
        """Return the field `name`, an object. Raise `ValueError` if it is none."""
        return Record(self.get(name, dict), self.where)

    def records(self, name: str) -> "list[Record]":
        """Return the field `name`, a list of objects. Raise `ValueError` if it is none."""
        return [_record(value, self.where) for value in self.get(name, list)]

    def label(self, choices: int) -> int:
        """Return the field `label`, the number of one of so many choices, from 0; it may be text.

        Raises `ValueError` if it is missing, or no choice has that number.
        """
        value = str(self.values.get("label"))
        if not value.isdecimal():
            raise ValueError(f"{self.where}: needs a field 'label' with the number of the right choice")
        if int(value) >= choices:
            raise ValueError(f"{self.where}: label is {value}, and choices are numbered from 0 to {choices - 1}")
        return int(value)


def read_records(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON-lines file, `.gz` or not. Raise `ValueError` naming a line that is not an object."""
    return (_record(value, where) for value, where in read_json_lines(path))


def _record(value: object, where: str) -> Record:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not an object")
    return Record(value, where)
