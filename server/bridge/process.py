"""An engine in a process of its own, so that it and the event loop do not share one interpreter lock.

Beside a GPU the engine's part in Python is as long as a step of the device, and what the event loop does for 64 streams
is as long again: on one lock each would wait for the other.

Neither process can hold up the other for good. Here one thread sends and another receives, and what receives waits for
nothing else; so a process that waits to send, because the pipe is full, is read, and then reads itself.
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

from thoughtbubbles.server.bridge.loop import Command, Commands, Load, Loaded, News, Tell, run_engine
from thoughtbubbles.server.bridge.trimming import Trimmer


def run_engine_process(load: Load, commands: Commands, tell: Tell) -> None:
    """What `run_engine` does, elsewhere. `load` must be picklable. Raises besides when the process dies."""
    context = get_context("spawn")  # a copy of this process would share its threads' locks, and CUDA allows none
    here, there = context.Pipe()
    process = context.Process(target=_live, args=(load, there), name="engine", daemon=True)
    _start(process)
    there.close()
    # Before the interpreter's own end, which asks the process to terminate and waits: it may hang, and takes no signal.
    atexit.register(process.kill)
    try:
        Thread(target=_forward, args=(commands, here), name="engine commands", daemon=True).start()
        ended_as_told = _hear(here, tell)
        process.join()
        if not ended_as_told:
            raise RuntimeError(f"the engine's process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join(timeout=1)  # not for ever: a driver that hangs keeps even what is killed
        atexit.unregister(process.kill)


def _start(process: SpawnProcess) -> None:
    """Start it deaf to what all processes of a terminal or a service get, from its first line: the server says when."""
    resource_tracker.ensure_running()  # which is started with the first process, and would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # of this thread; it inherits it
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forward(commands: Commands, connection: Connection) -> None:
    """Pass on commands; a pipe that is full is waited for here, and not by the event loop."""
    try:
        while (command := commands.get()) is not None:
            connection.send(command)
        connection.send(None)
    except OSError:  # the process is gone, which `_hear` finds out
        return


def _hear(connection: Connection, tell: Tell) -> bool:
    """Tell what the process tells, until it ends: whether it did so as it was told. Raises what failed in it."""
    trimmer = Trimmer()
    while True:
        try:
            news: News | Exception | None = connection.recv()
        except (EOFError, OSError):
            return False
        if news is None:
            return True
        if isinstance(news, Exception):
            raise news
        if isinstance(news, Loaded):
            gc.freeze()  # as the engine's process does: this one has torch, too
        tell(news)
        trimmer.trim()


class _Pipe:
    """Commands out of a pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def empty(self) -> bool:
        return not self._connection.poll()

    def get(self, *, timeout: float | None = None) -> Command:
        if timeout is not None and not self._connection.poll(timeout):
            raise queue.Empty
        command: Command = self._connection.recv()
        return command


def _live(load: Load, connection: Connection) -> None:
    """The process. After the engine's news it sends what failed, or None."""
    Thread(target=_end_with_server, name="server's end", daemon=True).start()
    with suppress(ConnectionError):  # the server is gone: nobody is left to be told
        try:
            run_engine(load, _Pipe(connection), connection.send)
            connection.send(None)
        except Exception as failure:
            connection.send(_portable(failure))


def _end_with_server() -> None:
    """End when the server has, however it did: a checkpoint may still load, or a step never return."""
    server = parent_process()
    assert server is not None
    server.join()
    os._exit(1)


def _portable(failure: Exception) -> Exception:
    """What can be sent of it: with its traceback as a note, and in words where its class cannot be made again."""
    told = "".join(traceback.format_exception(failure))
    try:
        pickle.loads(pickle.dumps(failure))  # noqa: S301 (our own)
    except Exception:
        failure = RuntimeError(f"{type(failure).__name__}: {failure}")
    failure.add_note(told)
    return failure
