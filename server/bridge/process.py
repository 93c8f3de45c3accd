"""An engine in a process of its own, so that it and the event loop do not share one interpreter lock.

On a GPU the engine's Python takes as long as the device takes for a step, and the event loop takes as long again for 64
streams: on one lock each would wait for the other.

Neither process can block the other for good. On each side one thread sends and another receives, and the receiving one
waits for nothing else: a process that waits because the pipe is full is read from, and then reads itself.
"""

import atexit
import gc
import os
import pickle
import queue
import signal
import traceback
from contextlib import suppress
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Thread

from thoughtbubbles.server.bridge.commands import Command, Commands
from thoughtbubbles.server.bridge.loop import Load, Loaded, OnReport, Report, run_engine
from thoughtbubbles.server.bridge.trimming import Trimmer


def run_engine_process(load: Load, commands: Commands, on_report: OnReport) -> None:
    """Run `run_engine` in a process of its own. `load` must be picklable. Raises also when the process dies."""
    context = get_context(
        "spawn"
    )  # a fork would copy the locks of this process's threads, and CUDA does not survive it
    connection, engines_connection = context.Pipe()
    process = context.Process(target=_run_process, args=(load, engines_connection), name="engine", daemon=True)
    _start(process)
    engines_connection.close()
    # Runs before the interpreter's own exit, which terminates the process and waits: it may hang, and blocks SIGTERM.
    atexit.register(process.kill)
    try:
        Thread(target=_forward, args=(commands, connection), name="engine commands", daemon=True).start()
        ended_by_command = _receive(connection, on_report)
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
    try:
        while (command := commands.get()) is not None:
            connection.send(command)
        connection.send(None)
    except OSError:  # the process has ended; `_receive` reports it
        return


def _receive(connection: Connection, on_report: OnReport) -> bool:
    """Pass on the process's reports until it ends. Return whether a command ended it; raise the exception that did."""
    trimmer = Trimmer()
    while True:
        try:
            report: Report | Exception | None = connection.recv()
        except (EOFError, OSError):
            return False
        if report is None:
            return True
        if isinstance(report, Exception):
            raise report
        if isinstance(report, Loaded):
            gc.freeze()  # as in the engine's process: this one has imported torch, too
        on_report(report)
        trimmer.trim()


class _PipedCommands:
    """Commands that are read from a pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def empty(self) -> bool:
        return not self._connection.poll()

    def get(self, *, timeout: float | None = None) -> Command:
        if timeout is not None and not self._connection.poll(timeout):
            raise queue.Empty
        command: Command = self._connection.recv()
        return command


def _run_process(load: Load, connection: Connection) -> None:
    """Run the engine in this process. The last report is the exception that ended it, or None."""
    Thread(target=_exit_with_server, name="server's end", daemon=True).start()
    with suppress(ConnectionError):  # the server has ended
        try:
            run_engine(load, _PipedCommands(connection), connection.send)
            connection.send(None)
        except Exception as failure:
            connection.send(_picklable(failure))


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
