"""The output of a batch: OpenAI's batch output lines, and what an interrupted run wrote of them."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic_core import from_json, to_json

from thoughtbubbles.model import lock_file
from thoughtbubbles.server.batch.input_file import BadLine, Line
from thoughtbubbles.server.protocol.requests import Json

if TYPE_CHECKING:
    from thoughtbubbles.server.batch.runner import Answer  # needs torch

START = b'{"id":"batch_req_'
"""How each line starts."""


class Output:
    """An output file: which lines of the input it has, and a way to append others. Each is written whole."""

    def __init__(self, file: FileIO, path: Path) -> None:
        """Read the file at `path`; raise `ValueError` for a line that no batch writes. Drop an incomplete last line.

        `file` appends to it, without a buffer: nothing of a failed write is left to fail again when it is closed.
        Nobody else may write to the file.
        """
        self._file = file
        self._path = path
        self._succeeded: dict[str, bool] = {}  # by custom_id: whether the answer is a success
        self._bad: set[int] = set()  # numbers of lines without a request
        end = 0
        with path.open("rb") as written:
            for number, text in enumerate(written, start=1):
                if text.endswith(b"\n"):
                    self._read(text, f"{path}, line {number}")
                    end += len(text)
                elif not text.startswith(START[: len(text)]):
                    raise _foreign(f"{path}, line {number}")
        file.truncate(end)

    def succeeded(self, line: Line | BadLine) -> bool | None:
        """Return whether the answer to `line` is a success; None if the file has no answer."""
        if isinstance(line, BadLine):
            return False if line.number in self._bad else None
        return self._succeeded.get(line.custom_id)

    def write_answer(self, answer: "Answer") -> None:
        """Append the answer to a line."""
        response: Json = {"status_code": answer.status, "request_id": f"req-{uuid.uuid4().hex}", "body": answer.body}
        if answer.ignored:
            response["ignored_parameters"] = list(answer.ignored)
        self._write(answer.line.custom_id, response, None)

    def write_bad_line(self, line: BadLine) -> None:
        """Append the error of a line without a request."""
        self._write(line.custom_id, None, {**line.error.body["error"], "line": line.number})

    def _write(self, custom_id: str | None, response: Json | None, error: Json | None) -> None:
        name = f"batch_req_{uuid.uuid4().hex}"
        record = {"id": name, "custom_id": custom_id, "response": response, "error": error}
        left = memoryview(to_json(record) + b"\n")
        try:
            while left:  # a file that becomes full takes a part
                left = left[self._file.write(left) :]
        except OSError as failure:
            failure.filename = self._path
            raise

    def _read(self, text: bytes, where: str) -> None:
        try:
            record = from_json(text)
            if record["error"] is None:
                self._succeeded[record["custom_id"]] = record["response"]["status_code"] == 200
            else:
                self._bad.add(record["error"]["line"])
        except (ValueError, TypeError, KeyError):
            raise _foreign(where) from None


@contextmanager
def open_output(path: Path) -> Iterator[Output]:
    """Open the output file, or make it. No other process can open it meanwhile.

    Raises `OSError` or `ValueError` if it cannot be written, or is not the output of a batch.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file")
    with path.open("ab", buffering=0) as file:
        if not lock_file(file):
            raise OSError(f"{path} is being written by another batch")
        yield Output(file, path)


def _foreign(where: str) -> ValueError:
    return ValueError(f"{where} is not a line of a batch's output; choose another output file")
