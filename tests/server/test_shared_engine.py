"""An engine that several HTTP processes share, by pipes to each."""

import asyncio
import os
import queue
from collections.abc import Iterator

import pytest

from benchmarks.server.stub_engine import NOTHING
from thoughtbubbles.server.bridge.commands import Abort, Command, LoadWeights
from thoughtbubbles.server.bridge.loop import Aborted, Accepted, CommandsDone, Report, Reports
from thoughtbubbles.server.bridge.packing import Unpacker
from thoughtbubbles.server.bridge.process import Ends, _PipedCommands, _PipedReports, share_engine
from thoughtbubbles.server.keys import ApiKeys
from thoughtbubbles.server.service import Service
from thoughtbubbles.server.settings import ServerSettings

FIRST, OTHER = Abort(["first"], "abort"), LoadWeights("other", 1.0)
NO_COMMAND = Abort((), "abort")
Pipes = list[tuple[Ends, Ends]]


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    """Of two HTTP processes: its own ends, and the engine's."""
    made = [Ends.of_new_pipes() for _ in range(2)]
    yield made
    for ends in (end for pair in made for end in pair):
        ends.close()


@pytest.fixture
def commands(pipes: Pipes) -> _PipedCommands:
    (_, first), (_, other) = pipes
    return _PipedCommands(first.commands, [other.commands])


def test_commands_of_all_arrive(pipes: Pipes, commands: _PipedCommands) -> None:
    (first, _), (other, _) = pipes
    assert commands.empty()
    with pytest.raises(queue.Empty):
        commands.get(timeout=0.001)
    other.commands.send([OTHER])
    assert not commands.empty()
    assert commands.get() == OTHER
    first.commands.send([FIRST, None])
    assert [commands.get(), commands.get()] == [FIRST, None]
    assert commands.empty()


def test_an_other_that_has_ended_is_a_command_that_does_nothing(pipes: Pipes, commands: _PipedCommands) -> None:
    """A loop that has been told of a command must get one: with requests that run it cannot wait."""
    (first, _), (other, _) = pipes
    other.commands.close()
    assert not commands.empty()
    assert commands.get() == NO_COMMAND
    assert commands.empty()
    first.commands.send([FIRST])
    assert commands.get(timeout=1) == FIRST


def test_an_other_that_ends_in_the_middle_of_a_command(pipes: Pipes, commands: _PipedCommands) -> None:
    (_, _), (other, _) = pipes
    os.write(other.commands.fileno(), (100).to_bytes(4) + b"cut")
    other.commands.close()
    assert commands.get() == NO_COMMAND
    assert commands.empty()


def test_a_first_that_has_ended_ends_the_engine(pipes: Pipes, commands: _PipedCommands) -> None:
    pipes[0][0].commands.close()
    with pytest.raises(EOFError):
        commands.get()


def told(ends: Ends) -> list[Report | Exception | None]:
    return list(Unpacker().unpack(os.read(ends.reports.fileno(), 1 << 16)))


def test_reports_reach_all_and_one_that_has_ended_is_left_out(pipes: Pipes) -> None:
    (first, engines_first), (other, engines_other) = pipes
    reports = _PipedReports(engines_first.reports, [engines_other.reports])
    reports.send(CommandsDone(NOTHING))
    assert told(first) == told(other) == [CommandsDone(NOTHING)]
    other.reports.close()
    for _ in range(2):
        reports.send(CommandsDone(NOTHING))
    assert told(first) == [CommandsDone(NOTHING)] * 2
    first.reports.close()
    with pytest.raises(BrokenPipeError):
        reports.send(None)


def test_requests_that_arrive_together_are_one_write(pipes: Pipes) -> None:
    """Each is a report; they are sent with the next one that is no such report."""
    (first, engines), _ = pipes
    reports = _PipedReports(engines.reports, [])
    arrivals = [Accepted(["a"], 1.0), Aborted(["a"], "abort"), Accepted(["b"], 2.0)]
    for arrival in arrivals:
        reports.send(arrival)
    assert not first.reports.poll()
    reports.send(CommandsDone(NOTHING))
    assert told(first) == [*arrivals, CommandsDone(NOTHING)]


async def shared(ends: Ends, commands: "queue.SimpleQueue[Command]") -> tuple[list[Report], BaseException | None]:
    """What one of the others is told, and what ended its use of the engine."""
    seen: list[Report] = []
    reports = Reports(asyncio.get_running_loop(), seen.append)
    using = asyncio.to_thread(share_engine, ends, commands, reports)
    (ended,) = await asyncio.gather(using, return_exceptions=True)
    return seen, ended


def test_its_own_end_ends_its_use_alone(pipes: Pipes) -> None:
    """The engine gets its commands but the last, and sees that its pipes are closed."""
    _, (other, engines) = pipes
    given: queue.SimpleQueue[Command] = queue.SimpleQueue()
    for command in (OTHER, None):
        given.put(command)
    assert asyncio.run(shared(other, given)) == ([], None)
    assert engines.commands.recv() == [OTHER]
    with pytest.raises(EOFError):
        engines.commands.recv()


def test_an_engine_that_is_gone_raises(pipes: Pipes) -> None:
    _, (other, engines) = pipes
    _PipedReports(engines.reports, []).send(CommandsDone(NOTHING))
    engines.close()
    seen, ended = asyncio.run(shared(other, queue.SimpleQueue()))
    assert seen == [CommandsDone(NOTHING)]
    assert repr(ended) == """RuntimeError("the engine's process has ended")"""


def test_each_process_has_its_part_of_the_connections() -> None:
    """And the keys, which only the first reads."""
    keys = ApiKeys.of(["sk-one"], "here")
    service = Service.create(ServerSettings(http_processes=3, max_connections=1000, api_keys=keys))
    assert service.settings.max_connections == service.settings_of_others.max_connections == 334
    assert Service.create(ServerSettings(max_connections=1000)).settings.max_connections == 1000
    assert (service.settings_of_others.api_keys, service.settings_of_others.api_keys_file) == (keys, None)
