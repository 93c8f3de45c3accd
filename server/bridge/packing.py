"""The reports of an engine as bytes, for the pipe from its process to the server's.

A report of a step has an event for each running request, and pickle takes microseconds for each object. So its events
are packed as columns, one for each field, and columns that have nothing are left out.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import repeat
from typing import Any, cast

from thoughtbubbles.engine import EngineStats, StepReport, TokenEvent
from thoughtbubbles.server.bridge.loop import Report, Stepped

LENGTH_BYTES = 4
"""A message begins with its length in so many bytes."""
DEFAULTS = [TokenEvent._field_defaults.get(name, ...) for name in TokenEvent._fields]
"""The default of each field of an event; `...` if it has none."""
STATS = [field.name for field in fields(EngineStats)]
STEP = [field.name for field in fields(StepReport)]

Columns = list[tuple[Any, ...] | None]
Packed = tuple[Columns, Sequence[Any] | None, Sequence[Any]]
_event = cast("Callable[[type[TokenEvent], tuple[Any, ...]], TokenEvent]", tuple.__new__)  # as `TokenEvent._make`


def pack(report: Report | Exception | None) -> bytes:
    """Return a report, the exception that ended the engine, or None, as bytes."""
    return framed(_packed(report) if isinstance(report, Stepped) else report)


def framed(message: object) -> bytes:
    """Return a pickled message behind its length."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(LENGTH_BYTES) + data


class Unpacker:
    """Returns what `pack` got, from bytes that may be cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""  # of a report that is not complete

    def unpack(self, data: bytes) -> Iterator[Report | Exception | None]:
        """Yield the reports that are complete with the next bytes."""
        data, at = self._rest + data, 0
        while (end := _end(data, at)) <= len(data):
            yield _unpacked(pickle.loads(data[at + LENGTH_BYTES : end]))  # noqa: S301 (our own)
            at = end
        self._rest = data[at:]


def _end(data: bytes, at: int) -> int:
    """Return where the report ends that begins at `at`, as far as its length is known."""
    start = at + LENGTH_BYTES
    return start + int.from_bytes(data[at:start]) if start <= len(data) else start


def _packed(step: Stepped) -> Packed:
    report = None if step.report is None else [getattr(step.report, name) for name in STEP]
    return _columns(step.events), report, [getattr(step.stats, name) for name in STATS]


def _unpacked(packed: Any) -> Report | Exception | None:  # noqa: ANN401 - what `pack` packed
    if not isinstance(packed, tuple):
        return cast("Report | Exception | None", packed)
    columns, step, stats = cast("Packed", packed)
    report = None if step is None else StepReport(**dict(zip(STEP, step, strict=True)))
    return Stepped(_events(columns), report, EngineStats(**dict(zip(STATS, stats, strict=True))))


def _columns(events: Sequence[TokenEvent]) -> Columns:
    """Return the values of each field, or None if all are the default; nothing if there are no events."""
    columns = zip(*events, strict=True)
    return [
        None if column[0] == default and column.count(default) == len(column) else column
        for column, default in zip(columns, DEFAULTS, strict=bool(events))
    ]


def _events(columns: Columns) -> list[TokenEvent]:
    filled = (
        repeat(default) if column is None else column
        for column, default in zip(columns, DEFAULTS, strict=bool(columns))
    )
    return list(map(_event, repeat(TokenEvent), zip(*filled, strict=False)))
