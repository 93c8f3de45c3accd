"""The engine's loop: it executes commands between steps, and reports what happens.

A loop runs on a thread of the server, or in a process of its own (`process.py`). Commands and reports are the same, and
neither side waits for the other.
"""

import gc
import logging
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from thoughtbubbles.engine import Engine, EngineStats, Group, InvalidRequest, QueueFull, StepReport, TokenEvent
from thoughtbubbles.server.bridge.errors import LoadError
from thoughtbubbles.server.bridge.reloading import POLL_SECONDS, Reloader
from thoughtbubbles.server.bridge.trimming import Trimmer
from thoughtbubbles.server.bridge.weights import NewWeights
from thoughtbubbles.server.core import EngineRequest, ServedModel

logger = logging.getLogger(__name__)

IDLE_SECONDS = 5.0
"""How long an engine has no work before it checks the cache."""

Load = Callable[[], tuple[Engine, ServedModel]]


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


Command = Add | Abort | LoadWeights | None
"""None ends the loop."""


@dataclass(frozen=True)
class Loaded:
    """The engine is loaded."""

    model: ServedModel
    stats: EngineStats


@dataclass(frozen=True)
class Accepted:
    """The engine accepted these requests."""

    request_ids: Sequence[str]
    arrived: float


@dataclass(frozen=True)
class Refused:
    """The engine refused these requests."""

    request_ids: Sequence[str]
    refusal: InvalidRequest | QueueFull
    stats: EngineStats


@dataclass(frozen=True)
class Aborted:
    """The engine had these requests and aborted them."""

    request_ids: Sequence[str]
    reason: str


@dataclass(frozen=True)
class WeightsLoaded:
    """From now on all events are of requests that these weights compute."""

    version: str
    revision: str | None
    """The commit of their repository on a hub; None for a folder."""
    stats: EngineStats


@dataclass(frozen=True)
class LoadEnded:
    """A load ended without new weights."""

    error: LoadError
    stats: EngineStats


@dataclass(frozen=True)
class CommandsDone:
    """All queued commands are executed, or the idle engine has checked its cache."""

    stats: EngineStats


@dataclass(frozen=True)
class Stepped:
    """The engine took a step; without a report it could compute nothing."""

    events: Sequence[TokenEvent]
    report: StepReport | None
    stats: EngineStats


Report = Loaded | Accepted | Refused | Aborted | WeightsLoaded | LoadEnded | CommandsDone | Stepped
OnReport = Callable[[Report], None]


class Commands(Protocol):
    """The reading end of a queue or pipe of commands."""

    def empty(self) -> bool:
        """Return whether no command is queued."""

    def get(self, *, timeout: float | None = None) -> Command:
        """Return the next command. Raise `queue.Empty` if none comes within `timeout` seconds."""


def run_engine(load: Load, commands: Commands, on_report: OnReport) -> None:
    """Load an engine, and step it while it has work, until a command ends the loop. Exceptions are not caught."""
    engine, model = load()
    gc.freeze()  # what is loaded stays: each search of it for garbage takes as long as many steps
    on_report(Loaded(model, engine.stats()))
    trimmer, reloader = Trimmer(), Reloader(engine, model)
    while _execute_commands(engine, commands, on_report, reloader):
        _advance(reloader, engine, on_report)
        events = engine.step()
        on_report(Stepped(events, engine.last_step, engine.stats()))
        trimmer.trim()


def _execute_commands(engine: Engine, commands: Commands, on_report: OnReport, reloader: Reloader) -> bool:
    """Execute the queued commands; if the engine has no work, wait for one. Return False at the command to end."""
    while not engine.has_work or not commands.empty():
        match _next_command(engine, commands, on_report, reloader):
            case Add() as command:
                on_report(_add(engine, command))
            case Abort(request_ids, reason):
                on_report(Aborted(engine.abort(*request_ids), reason))
            case LoadWeights(checkpoint):
                reloader.begin(checkpoint)
            case None:
                return False
        if commands.empty():  # one report of the engine's numbers for commands that arrive together
            on_report(CommandsDone(engine.stats()))
    return True


def _next_command(engine: Engine, commands: Commands, on_report: OnReport, reloader: Reloader) -> Command:
    """Return the next command. If the engine is idle for a while before it comes, check the cache once.

    A load that is in progress goes on meanwhile.
    """
    while reloader.loading:
        try:
            return commands.get(timeout=POLL_SECONDS)
        except queue.Empty:
            _advance(reloader, engine, on_report)
    try:
        return commands.get(timeout=IDLE_SECONDS)
    except queue.Empty:
        if failure := engine.check_integrity():
            logger.error("the fork-state cache has wrong page counts: %s", failure)
        on_report(CommandsDone(engine.stats()))
        return commands.get()


def _advance(reloader: Reloader, engine: Engine, on_report: OnReport) -> None:
    """Go on with the load, if one is in progress, and report its end."""
    match reloader.advance():
        case NewWeights(version=version, revision=revision):
            on_report(WeightsLoaded(version, revision, engine.stats()))
        case LoadError() as error:
            on_report(LoadEnded(error, engine.stats()))


def _add(engine: Engine, command: Add) -> Accepted | Refused:
    added: list[str] = []
    group = Group()  # an answer's choices are all of the same weights
    try:
        for request in command.requests:
            engine.add(request.request_id, request.prompt, request.params, client=command.client, group=group)
            added.append(request.request_id)
    except (InvalidRequest, QueueFull) as refusal:
        stats = engine.stats()
        engine.abort(*added)
        return Refused([request.request_id for request in command.requests], refusal, stats)
    return Accepted(added, command.arrived)
