"""An engine in a process of its own, so that it and the event loop do not share one interpreter lock.

Beside a GPU the engine's part in Python is as long as a step of the device, and what the event loop does for 64 streams
is as long again: on one lock each would wait for the other.
"""

import atexit
import signal
import traceback
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import Thread

from server.engine_loop import Command, Commands, Load, News, Tell, run_engine


def run_engine_process(load: Load, commands: Commands, tell: Tell) -> None:
    """What `run_engine` does, elsewhere. `load` must be picklable. Raises besides when the process dies."""
    context = get_context("spawn")  # a copy of this process would share its threads' locks, and CUDA allows none
    here, there = context.Pipe()
    process = context.Process(target=_live, args=(load, there), name="engine", daemon=True)
    process.start()
    there.close()
    # Before the interpreter's own end, which asks the process to terminate and waits: it may hang, and takes no signal.
    atexit.register(process.kill)
    try:
        Thread(target=_forward, args=(commands, here), name="engine commands", daemon=True).start()
        _hear(here, tell)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the engine's process ended with {process.exitcode}")
    finally:
        process.kill()
        atexit.unregister(process.kill)


def _forward(commands: Commands, connection: Connection) -> None:
    """Pass on commands; a pipe that is full is waited for here, and not by the event loop."""
    try:
        while (command := commands.get()) is not None:
            connection.send(command)
        connection.send(None)
    except OSError:  # the process is gone, which `_hear` finds out
        return


def _hear(connection: Connection, tell: Tell) -> None:
    """Tell what the process tells, until it ends. Raises what ended it."""
    while True:
        try:
            news: News | Exception = connection.recv()
        except (EOFError, OSError):
            return
        if isinstance(news, Exception):
            raise news
        tell(news)


class _Pipe:
    """Commands out of a pipe. When the server is gone, the engine is to end too."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def empty(self) -> bool:
        return not self._connection.poll()

    def get(self) -> Command:
        try:
            command: Command = self._connection.recv()
        except (EOFError, OSError):
            return None
        return command


def _live(load: Load, connection: Connection) -> None:
    """The process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # which all of a terminal or a service get: the server says when
        signal.signal(number, signal.SIG_IGN)
    try:
        run_engine(load, _Pipe(connection), connection.send)
    except BrokenPipeError:  # the server is gone
        return
    except Exception as failure:
        failure.add_note("".join(traceback.format_exception(failure)))  # which no pickle has
        connection.send(failure)
