"""The commands that an engine's loop executes between steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from thoughtbubbles.server.core import EngineRequest


@dataclass(frozen=True)
class Add:
    """Add all of these requests to the engine, or none."""

    requests: Sequence[EngineRequest]
    arrived: float
    """When the client's request arrived, in monotonic seconds."""
    client: str = ""
    """The client whose share of the queue they count against."""


@dataclass(frozen=True)
class Abort:
    """Abort these requests; no more events are reported for them."""

    request_ids: Sequence[str]
    reason: str


@dataclass(frozen=True)
class LoadWeights:
    """Load the weights of this checkpoint, a folder or a hub id. At most one load is in progress."""

    checkpoint: str
    wait_seconds: float
    """How long requests that run may keep others waiting for the weights; then the load ends with an error."""


Command = Add | Abort | LoadWeights | None
"""None ends the loop."""


class Commands(Protocol):
    """The reading end of a queue or pipe of commands."""

    def empty(self) -> bool:
        """Return whether no command is queued."""

    def get(self, *, timeout: float | None = None) -> Command:
        """Return the next command. Raise `queue.Empty` if none comes within `timeout` seconds."""
