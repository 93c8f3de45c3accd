"""The input of a batch: OpenAI's batch lines, `{"custom_id", "method", "url", "body"}`, one request a line."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import Field

from thoughtbubbles.server.protocol.errors import ApiError, bad_request, quoted, too_large
from thoughtbubbles.server.protocol.requests import Json, RequestBody
from thoughtbubbles.server.protocol.validation import parse_object, validate

SKIPPED_BYTES = 1 << 20
"""Bytes of a line over the limit that are read at a time."""


class BatchLine(RequestBody):
    """The fields of a line."""

    custom_id: str = Field(min_length=1)
    """The client's name of the request, unique in the file."""
    method: Literal["POST"]
    """The only method that generates."""
    url: Literal["/v1/completions", "/v1/chat/completions"]
    """The route whose request `body` is."""
    body: dict[str, Any]
    """The request."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line with a request."""

    number: int
    """Counted from 1."""
    custom_id: str
    """The client's name of the request."""
    url: str
    """The route whose request `body` is."""
    body: Json
    """The request; it may be invalid."""


@dataclass(frozen=True, kw_only=True)
class BadLine:
    """A line that has no request, for `error`."""

    number: int
    """Counted from 1."""
    custom_id: str | None
    """The client's name of the request, if the line has one."""
    error: ApiError
    """What is wrong."""


def count_lines(path: Path, limit: int) -> int:
    """Return how many lines `read_lines` yields."""
    return sum(1 for _ in _numbered(path, limit))


def read_lines(path: Path, limit: int) -> Iterator[Line | BadLine]:
    """Yield the lines of the file except blank ones; a line with over `limit` bytes is bad.

    Raises `OSError` if the file cannot be read.
    """
    seen: set[str] = set()
    for number, text in _numbered(path, limit):
        custom_id = None
        try:
            if len(text) > limit:
                raise too_large(limit)
            value = parse_object(text, f"Line {number}")
            if isinstance(name := value.get("custom_id"), str):
                custom_id = name
                _add_unique(name, seen)
            line = validate(value, BatchLine)
        except ApiError as error:
            yield BadLine(number=number, custom_id=custom_id, error=error)
        else:
            yield Line(number=number, custom_id=line.custom_id, url=line.url, body=line.body)


def _add_unique(custom_id: str, seen: set[str]) -> None:
    if custom_id in seen:
        message = f"Invalid 'custom_id': {quoted(custom_id)} names an earlier line, and must be unique."
        raise bad_request(message, "duplicate_custom_id", "custom_id")
    seen.add(custom_id)


def _numbered(path: Path, limit: int) -> Iterator[tuple[int, bytes]]:
    """Yield number and text of each line that is not blank; its first bytes, over `limit`, if it is longer."""
    with path.open("rb") as file:
        number = 0
        while text := _next_line(file, limit):
            number += 1
            text = text.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").rstrip(b"\r\n")
            if text.strip():
                yield number, text


def _next_line(file: BinaryIO, limit: int) -> bytes:
    """Return the next line, or only its first bytes if it is over `limit`: no line fills the memory."""
    text = part = file.readline(limit + len(codecs.BOM_UTF8) + len(b"\r\n") + 1)
    while part and not part.endswith(b"\n"):
        part = file.readline(SKIPPED_BYTES)
    return text
