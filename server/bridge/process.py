"""An engine in a process of its own, so that it and the event loop do not share one interpreter lock.

On a GPU the engine's Python takes as long as the device takes for a step, and the event loop takes as long again for 64
streams: on one lock each would wait for the other.

Neither process can block the other for good. The server sends on a thread and receives on the event loop, which waits
for neither: an engine that waits because its pipe is full is read from, and then reads itself. The pipe of its reports
is large, so that it seldom waits for a busy event loop. A thread that received would take and release the interpreter
lock for each step, which takes several times as long as to read the report.

Several HTTP processes can share an engine: each has two pipes, every report is packed once and written to all, and each
process passes on what is of its own requests. An engine waits for the slowest of them, and a killed one closes its
pipes; that none stays without reading is the first process's care (`server.processes.first`).
"""

import atexit
import fcntl
import os
import pickle
import queue
import select
import signal
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Thread

from thoughtbubbles.server.bridge.commands import Abort, Command, Commands
from thoughtbubbles.server.bridge.garbage import search_seldom
from thoughtbubbles.server.bridge.loop import Aborted, Accepted, Load, Loaded, Report, Reports, run_engine
from thoughtbubbles.server.bridge.packing import Unpacker, pack
from thoughtbubbles.server.bridge.trimming import TRIM_SECONDS, Trimmer

PIPE_BYTES = 1 << 20
"""The size of the pipe of reports, where the system lets us choose it: some hundreds of large steps."""
READ_BYTES = 1 << 16
"""Most bytes of one read."""
CONTEXT = get_context("spawn")  # a fork would copy the locks of this process's threads, and CUDA does not survive it


@dataclass(frozen=True)
class Ends:
    """The ends of two pipes that one process has: an HTTP process, or the engine's."""

    commands: Connection
    reports: Connection

    @staticmethod
    def of_new_pipes() -> "tuple[Ends, Ends]":
        """Return the ends for an HTTP process, and those for the engine's."""
        engines_commands, commands = CONTEXT.Pipe(duplex=False)
        reports, engines_reports = CONTEXT.Pipe(duplex=False)
        _enlarge(engines_reports)
        return Ends(commands, reports), Ends(engines_commands, engines_reports)

    def close(self) -> None:
        """Close both."""
        self.commands.close()
        self.reports.close()


def run_engine_process(load: Load, commands: Commands, on_report: Reports, others: Sequence[Ends] = ()) -> None:
    """Run `run_engine` in a process of its own. `load` must be picklable. Raises also when the process dies.

    `others` are the engine's ends of pipes to other HTTP processes, which share the engine: `share_engine`. The command
    of this process ends it.
    """
    own, engines = Ends.of_new_pipes()
    process = CONTEXT.Process(target=_run_process, args=(load, engines, others), name="engine", daemon=True)
    start_process(process)
    for ends in (engines, *others):
        ends.close()
    # Runs before the interpreter's own exit, which terminates the process and waits: it may hang, and blocks SIGTERM.
    atexit.register(process.kill)
    try:
        _forward_beside(commands, own.commands.send)
        ended_by_command = _Receiver(own.reports, on_report).wait()
        process.join()
        if not ended_by_command:
            raise RuntimeError(f"the engine's process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join(timeout=1)  # a hanging driver keeps even a killed process alive
        atexit.unregister(process.kill)


def share_engine(ends: Ends, commands: Commands, on_report: Reports) -> None:
    """Use the engine that another process runs, until the command to end, which ends this use alone.

    Raises when the engine ends before.
    """
    receiver = _Receiver(ends.reports, on_report)

    def send(batch: list[Command]) -> None:
        if given := [command for command in batch if command is not None]:
            ends.commands.send(given)
        if len(given) < len(batch):
            receiver.stop()

    try:
        _forward_beside(commands, send)
        if not receiver.wait():
            raise RuntimeError("the engine's process has ended")
    finally:
        ends.close()  # the engine would wait for this process to read


def start_process(process: SpawnProcess) -> None:
    """Start `process` with SIGINT and SIGTERM blocked: terminals and services send them to it, too."""
    resource_tracker.ensure_running()  # it is started with the first process, and would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # the child inherits the mask
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent() -> None:
    """Have this process exit when its parent does, even while a checkpoint loads or a step hangs."""
    parent = parent_process()
    assert parent is not None

    def wait_and_exit() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait_and_exit, name="parent's end", daemon=True).start()


def _forward_beside(commands: Commands, send: Callable[[list[Command]], None]) -> None:
    """Send commands, on a thread: if the pipe is full, that waits and not the event loop."""
    Thread(target=_forward, args=(commands, send), name="engine commands", daemon=True).start()


def _forward(commands: Commands, send: Callable[[list[Command]], None]) -> None:
    with suppress(OSError):  # the process has ended; `_Receiver` reports it
        batch: list[Command] = []
        while not batch or batch[-1] is not None:
            batch = [commands.get()]
            while not commands.empty():
                batch.append(commands.get())
            send(batch)  # those that came together, in half the time


def _enlarge(pipe: Connection) -> None:
    """Give a pipe `PIPE_BYTES`, if the system can."""
    with suppress(AttributeError, OSError):  # only Linux can, and not beyond a user's limit
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


class _Receiver:
    """Has the event loop read the process's reports and pass them on, until it ends."""

    def __init__(self, pipe: Connection, on_report: Reports) -> None:
        self._pipe = pipe
        self._on_report = on_report
        self._unpacker = Unpacker()
        self._ended: Future[bool] = Future()
        on_report.loop.call_soon_threadsafe(on_report.loop.add_reader, pipe.fileno(), self._read)

    def wait(self) -> bool:
        """Wait until the process ends. Return whether a command ended it; raise the exception that did."""
        trimmer = Trimmer()
        while not wait([self._ended], TRIM_SECONDS).done:
            trimmer.trim()
        return self._ended.result()

    def stop(self) -> None:
        """Read no more, as if a command had ended the engine. Any thread may call it."""
        self._on_report.loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if not self._ended.done():
            self._finish(by_command=True)

    def _read(self) -> None:
        """Pass on what the pipe has: if it has nothing, the process has died."""
        try:
            data = os.read(self._pipe.fileno(), READ_BYTES)
            for report in self._unpacker.unpack(data):
                self._take(report)
            if not data:
                self._finish(by_command=False)
        except Exception as failure:
            self._finish(failure)

    def _take(self, report: Report | Exception | None) -> None:
        if report is None:
            self._finish(by_command=True)
        elif isinstance(report, Exception):
            self._finish(report)
        else:
            if isinstance(report, Loaded):
                search_seldom()  # as in the engine's process: this one has imported torch, too
            self._on_report(report)

    def _finish(self, failure: Exception | None = None, *, by_command: bool = False) -> None:
        self._on_report.loop.remove_reader(self._pipe.fileno())
        if failure is None:
            self._ended.set_result(by_command)
        else:
            self._ended.set_exception(failure)


class _PipedReports:
    """Sends reports through pipes, the same bytes through each."""

    def __init__(self, first: Connection, others: Sequence[Connection]) -> None:
        self._first = first
        self._others = list(others)
        self._held = list[bytes]()

    def send(self, report: Report | Exception | None) -> None:
        """Send a report to all. Raises `ConnectionError` if the first process has ended.

        What requests became at their arrival goes with the next report, which the loop makes before it waits or steps.
        """
        self._held.append(pack(report))
        if isinstance(report, Accepted | Aborted):
            return
        data = b"".join(self._held)
        self._held.clear()
        _write(self._first, data)
        for other in self._others[:]:
            try:
                _write(other, data)
            except ConnectionError:  # its process has ended, or was killed in the middle of this
                self._others.remove(other)


def _write(pipe: Connection, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(pipe.fileno(), rest) :]


class _PipedCommands:
    """Commands that are read from pipes, which have them in lists."""

    def __init__(self, first: Connection, others: Sequence[Connection]) -> None:
        self._first = first
        self._connections = {each.fileno(): each for each in (first, *others)}
        self._read: deque[Command] = deque()
        self._poll = select.poll()  # what `Connection.poll` makes anew for each call
        for descriptor in self._connections:
            self._poll.register(descriptor, select.POLLIN)

    def empty(self) -> bool:
        return not self._read and not self._poll.poll(0)

    def get(self, *, timeout: float | None = None) -> Command:
        if not self._read:
            ready = self._poll.poll(None if timeout is None else 1000 * timeout)
            if not ready:
                raise queue.Empty
            for descriptor, _ in ready:
                self._receive(descriptor)
        return self._read.popleft()

    def _receive(self, descriptor: int) -> None:
        connection = self._connections[descriptor]
        try:
            self._read.extend(connection.recv())
        except (EOFError, OSError):
            if connection is self._first:
                raise
            self._poll.unregister(descriptor)
            self._read.append(Abort((), "abort"))  # of nothing: that process has ended, and the loop awaits a command


def _run_process(load: Load, first: Ends, others: Sequence[Ends]) -> None:
    """Run the engine in this process. The last report is the exception that ended it, or None."""
    exit_with_parent()
    reports = _PipedReports(first.reports, [each.reports for each in others])
    commands = _PipedCommands(first.commands, [each.commands for each in others])
    with suppress(ConnectionError):  # the server has ended
        try:
            run_engine(load, commands, reports.send)
            reports.send(None)
        except Exception as failure:
            reports.send(_picklable(failure))


def _picklable(failure: Exception) -> Exception:
    """Return `failure` with its traceback as a note; a RuntimeError with its text if it cannot be pickled."""
    trace = "".join(traceback.format_exception(failure))
    try:
        pickle.loads(pickle.dumps(failure))  # noqa: S301 (our own)
    except Exception:
        failure = RuntimeError(f"{type(failure).__name__}: {failure}")
    failure.add_note(trace)
    return failure
