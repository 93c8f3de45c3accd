"""An engine in a process of its own, so that it and the event loop do not share one interpreter lock.

On a GPU the engine's Python takes as long as the device takes for a step, and the event loop takes as long again for 64
streams: on one lock each would wait for the other.

Neither process can block the other for good. The server sends on a thread and receives on the event loop, which waits
for neither: an engine that waits because its pipe is full is read from, and then reads itself. The pipe of its reports
is large, so that it seldom waits for a busy event loop. A thread that received would take and release the interpreter
lock for each step, which takes several times as long as to read the report.
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
from concurrent.futures import Future, wait
from contextlib import suppress
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Thread

from thoughtbubbles.server.bridge.commands import Command, Commands
from thoughtbubbles.server.bridge.garbage import search_seldom
from thoughtbubbles.server.bridge.loop import Load, Loaded, Report, Reports, run_engine
from thoughtbubbles.server.bridge.packing import Unpacker, pack
from thoughtbubbles.server.bridge.trimming import TRIM_SECONDS, Trimmer

PIPE_BYTES = 1 << 20
"""The size of the pipe of reports, where the system lets us choose it: some hundreds of large steps."""
READ_BYTES = 1 << 16
"""Most bytes of one read."""


def run_engine_process(load: Load, commands: Commands, on_report: Reports) -> None:
    """Run `run_engine` in a process of its own. `load` must be picklable. Raises also when the process dies."""
    context = get_context(
        "spawn"
    )  # a fork would copy the locks of this process's threads, and CUDA does not survive it
    engines_commands, sent_commands = context.Pipe(duplex=False)
    reports, engines_reports = context.Pipe(duplex=False)
    _enlarge(engines_reports)
    process = context.Process(
        target=_run_process, args=(load, engines_commands, engines_reports), name="engine", daemon=True
    )
    _start(process)
    engines_commands.close()
    engines_reports.close()
    # Runs before the interpreter's own exit, which terminates the process and waits: it may hang, and blocks SIGTERM.
    atexit.register(process.kill)
    try:
        Thread(target=_forward, args=(commands, sent_commands), name="engine commands", daemon=True).start()
        ended_by_command = _Receiver(reports, on_report).wait()
        process.join()
        if not ended_by_command:
            raise RuntimeError(f"the engine's process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join(timeout=1)  # a hanging driver keeps even a killed process alive
        atexit.unregister(process.kill)


def _start(process: SpawnProcess) -> None:
    """Start `process` with SIGINT and SIGTERM blocked: terminals and services send them to it, too."""
    resource_tracker.ensure_running()  # it is started with the first process, and would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # the child inherits the mask
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forward(commands: Commands, connection: Connection) -> None:
    """Send commands to the process. If the pipe is full, this thread waits and not the event loop."""
    with suppress(OSError):  # the process has ended; `_receive` reports it
        batch: list[Command] = []
        while not batch or batch[-1] is not None:
            batch = [commands.get()]
            while not commands.empty():
                batch.append(commands.get())
            connection.send(batch)  # those that came together, in half the time


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
    """Sends reports through a pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def send(self, report: Report | Exception | None) -> None:
        rest = memoryview(pack(report))
        while rest:
            rest = rest[os.write(self._pipe.fileno(), rest) :]


class _PipedCommands:
    """Commands that are read from a pipe, which has them in lists."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._read: deque[Command] = deque()
        self._poll = select.poll()  # what `Connection.poll` makes anew for each call
        self._poll.register(connection.fileno(), select.POLLIN)

    def empty(self) -> bool:
        return not self._read and not self._poll.poll(0)

    def get(self, *, timeout: float | None = None) -> Command:
        if not self._read:
            if timeout is not None and not self._connection.poll(timeout):
                raise queue.Empty
            self._read.extend(self._connection.recv())
        return self._read.popleft()


def _run_process(load: Load, commands: Connection, pipe: Connection) -> None:
    """Run the engine in this process. The last report is the exception that ended it, or None."""
    Thread(target=_exit_with_server, name="server's end", daemon=True).start()
    reports = _PipedReports(pipe)
    with suppress(ConnectionError):  # the server has ended
        try:
            run_engine(load, _PipedCommands(commands), reports.send)
            reports.send(None)
        except Exception as failure:
            reports.send(_picklable(failure))


def _exit_with_server() -> None:
    """Exit when the server exits, even while a checkpoint loads or a step hangs."""
    server = parent_process()
    assert server is not None
    server.join()
    os._exit(1)


def _picklable(failure: Exception) -> Exception:
    """Return `failure` with its traceback as a note; a RuntimeError with its text if it cannot be pickled."""
    trace = "".join(traceback.format_exception(failure))
    try:
        pickle.loads(pickle.dumps(failure))  # noqa: S301 (our own)
    except Exception:
        failure = RuntimeError(f"{type(failure).__name__}: {failure}")
    failure.add_note(trace)
    return failure
