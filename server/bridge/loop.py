"""Where the engine lives: commands are carried out between its steps, and what happens is told.

A loop runs on a thread of the server, or in a process of its own (`process.py`). Either way it hears of commands
and tells of what happens in the same words, and neither side waits for the other.
"""

import gc
import logging
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from thoughtbubbles.engine import Engine, EngineStats, InvalidRequest, QueueFull, StepReport, TokenEvent
from thoughtbubbles.server.bridge.generation import EngineRequest
from thoughtbubbles.server.bridge.loading import ServedModel
from thoughtbubbles.server.bridge.trimming import Trimmer

logger = logging.getLogger(__name__)

IDLE_SECONDS = 5.0
"""How long an engine has nothing to do before it checks the cache."""

Load = Callable[[], tuple[Engine, ServedModel]]


@dataclass(frozen=True)
class Admit:
    """Take all of these requests, or none."""

    requests: Sequence[EngineRequest]
    arrived: float
    """When their client asked, in monotonic seconds."""
    client: str = ""
    """Whose share of the queue they count for."""


@dataclass(frozen=True)
class Abort:
    """Free what these hold, and tell nothing more of them."""

    request_ids: Sequence[str]
    reason: str


Command = Admit | Abort | None
"""None ends the loop."""


@dataclass(frozen=True)
class Loaded:
    """The engine is there."""

    model: ServedModel
    stats: EngineStats


@dataclass(frozen=True)
class Accepted:
    """The engine took these."""

    request_ids: Sequence[str]
    arrived: float


@dataclass(frozen=True)
class Refused:
    """The engine took none of these."""

    request_ids: Sequence[str]
    refusal: InvalidRequest | QueueFull
    stats: EngineStats


@dataclass(frozen=True)
class Aborted:
    """These were there, and are no more."""

    request_ids: Sequence[str]
    reason: str


@dataclass(frozen=True)
class Obeyed:
    """All commands that had come together are carried out."""

    stats: EngineStats


@dataclass(frozen=True)
class Stepped:
    """The engine took a step, or without a report found nothing that it could do."""

    events: Sequence[TokenEvent]
    report: StepReport | None
    stats: EngineStats


News = Loaded | Accepted | Refused | Aborted | Obeyed | Stepped
Tell = Callable[[News], None]


class Commands(Protocol):
    """What commands come through: a queue, or a pipe."""

    def empty(self) -> bool:
        """Whether none waits."""

    def get(self, *, timeout: float | None = None) -> Command:
        """Return the next one. Raise `queue.Empty` if none comes within `timeout` seconds."""


def run_engine(load: Load, commands: Commands, tell: Tell) -> None:
    """Load an engine and step it while it has work, until told to end. Raises what loading or a step raises."""
    engine, model = load()
    gc.freeze()  # what has been loaded stays: to look through it for garbage takes as long as many steps
    tell(Loaded(model, engine.stats()))
    trimmer = Trimmer()
    while _obey(engine, commands, tell):
        events = engine.step()
        tell(Stepped(events, engine.last_step, engine.stats()))
        trimmer.trim()


def _obey(engine: Engine, commands: Commands, tell: Tell) -> bool:
    """Carry out the commands that wait; with nothing to compute, sleep until one comes. False means end."""
    while not engine.has_work or not commands.empty():
        match _next_command(engine, commands, tell):
            case Admit() as admission:
                tell(_admit(engine, admission))
            case Abort(request_ids, reason):
                tell(Aborted(engine.abort(*request_ids), reason))
            case None:
                return False
        if commands.empty():  # one census for all that came together, as clients do
            tell(Obeyed(engine.stats()))
    return True


def _next_command(engine: Engine, commands: Commands, tell: Tell) -> Command:
    """Return the next command. If the engine is idle for a while before it comes, check the cache once."""
    try:
        return commands.get(timeout=IDLE_SECONDS)
    except queue.Empty:
        if failure := engine.check_integrity():
            logger.error("the fork-state cache has wrong page counts: %s", failure)
        tell(Obeyed(engine.stats()))
        return commands.get()


def _admit(engine: Engine, admission: Admit) -> Accepted | Refused:
    added: list[str] = []
    try:
        for request in admission.requests:
            engine.add(request.request_id, request.prompt, request.params, client=admission.client)
            added.append(request.request_id)
    except (InvalidRequest, QueueFull) as refusal:
        stats = engine.stats()
        engine.abort(*added)
        return Refused([request.request_id for request in admission.requests], refusal, stats)
    return Accepted(added, admission.arrived)
