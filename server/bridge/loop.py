"""The engine's loop: it executes commands between steps, and reports what happens.

A loop runs on a thread of the server, or in a process of its own (`process.py`). Commands and reports are the same, and
neither side waits for the other.
"""

import logging
import queue
from asyncio import AbstractEventLoop
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from thoughtbubbles.engine import Engine, EngineStats, Group, InvalidRequest, QueueFull, StepReport, TokenEvent
from thoughtbubbles.server.bridge.commands import Abort, Add, Command, Commands, LoadWeights
from thoughtbubbles.server.bridge.compiling import Compiling
from thoughtbubbles.server.bridge.errors import LoadError
from thoughtbubbles.server.bridge.garbage import search_seldom
from thoughtbubbles.server.bridge.reloading import POLL_SECONDS, Reloader
from thoughtbubbles.server.bridge.trimming import Trimmer
from thoughtbubbles.server.bridge.weights import NewWeights
from thoughtbubbles.server.core import ServedModel

logger = logging.getLogger(__name__)

IDLE_SECONDS = 5.0
"""How long an engine has no work before it checks the cache."""
COMPILING_SECONDS = 0.005
"""How long an engine without work waits for a command before it looks whether a grammar is compiled."""

Load = Callable[[], tuple[Engine, ServedModel]]


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


@dataclass(frozen=True)
class Reports:
    """Where the reports of one engine go. All are made on one thread: the engine's, or that of the event loop."""

    loop: AbstractEventLoop
    """The server's event loop."""
    on_report: OnReport
    """Called with each report."""

    def __call__(self, report: Report) -> None:
        """Pass a report on."""
        self.on_report(report)


def run_engine(load: Load, commands: Commands, on_report: OnReport) -> None:
    """Load an engine, and step it while it has work, until a command ends the loop. Exceptions are not caught."""
    engine, model = load()
    search_seldom()
    on_report(Loaded(model, engine.stats()))
    trimmer, compiling, reloader = Trimmer(), Compiling(engine.tokenizer), Reloader(engine, model)
    while _execute_commands(engine, commands, compiling, reloader, on_report):
        _advance(reloader, engine, on_report)
        events = engine.step()
        on_report(Stepped(events, engine.last_step, engine.stats()))
        trimmer.trim()
    compiling.close()


def _execute_commands(
    engine: Engine, commands: Commands, compiling: Compiling, reloader: Reloader, on_report: OnReport
) -> bool:
    """Execute the queued commands; if the engine has no work, wait for one. Return False at the command to end."""
    while not engine.has_work or compiling.is_done or not commands.empty():
        match _next_command(engine, commands, compiling, reloader, on_report):
            case Add() as command:
                if not compiling.hold(command):
                    on_report(_add(engine, command))
            case Abort(request_ids, reason):
                _abort(engine, compiling, request_ids, reason, on_report)
            case LoadWeights() as command:
                reloader.begin(command)
            case None:
                return False
        if commands.empty():  # one report of the engine's numbers for commands that arrive together
            on_report(CommandsDone(engine.stats()))
    return True


def _next_command(
    engine: Engine, commands: Commands, compiling: Compiling, reloader: Reloader, on_report: OnReport
) -> Command:
    """Return the next command, or one that waited for its grammar. If the engine is idle for a while before it comes,
    check the cache once.

    A load that is in progress goes on meanwhile.
    """
    while compiling or reloader.loading:
        if compiling.is_done:
            return compiling.pop()
        with suppress(queue.Empty):
            return commands.get(timeout=COMPILING_SECONDS if compiling else POLL_SECONDS)
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


def _abort(engine: Engine, compiling: Compiling, request_ids: Sequence[str], reason: str, on_report: OnReport) -> None:
    """Abort requests that the engine has or that wait for their grammars; report these as accepted first."""
    aborted = engine.abort(*request_ids)
    for command in compiling.remove(request_ids):
        gone = [request.request_id for request in command.requests]
        on_report(Accepted(gone, command.arrived))
        aborted += gone
    on_report(Aborted(aborted, reason))


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
