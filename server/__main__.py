"""`python -m thoughtbubbles.server`, the same as `thoughtbubbles serve`."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children

from thoughtbubbles.server.sources import add_arguments, read_settings

FAILURE = 1
USAGE_ERROR = 2


def run(args: argparse.Namespace) -> int:
    """Serve until a signal or a failure. Return the exit code: 0 after a signal, 1 if the engine or a process failed.

    Raises `ValueError` or `OSError` if a setting, the checkpoint or the port cannot be used.
    """
    with _exiting_on_signals():
        return _serve(args)


@contextmanager
def _exiting_on_signals() -> Iterator[None]:
    """Inside the block, SIGTERM and SIGINT end the process with 0, until the event loop handles them.

    In a container the server is process 1, which has no default for SIGTERM: without a handler the signal is lost. A
    handler that raises would lose it, too, if it interrupts a callback; imports run some.
    """
    before = {number: signal.signal(number, lambda *_: os._exit(0)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(args: argparse.Namespace) -> int:
    settings = read_settings(args, os.environ)
    # Imported here so that --help and wrong settings need not wait for torch.
    from uvicorn.loops.auto import auto_loop_factory  # noqa: PLC0415

    from thoughtbubbles.server.app import create_app  # noqa: PLC0415
    from thoughtbubbles.server.lifecycle import serve  # noqa: PLC0415
    from thoughtbubbles.server.observe.logs import writing  # noqa: PLC0415
    from thoughtbubbles.server.other_process import run_other  # noqa: PLC0415
    from thoughtbubbles.server.service import Service  # noqa: PLC0415
    from thoughtbubbles.server.sockets import listen  # noqa: PLC0415

    service = Service.create(settings)
    loops = auto_loop_factory()  # uvloop's if it is installed
    with (
        writing(settings.log_format),
        listen(settings.host, settings.port, shared=settings.http_processes > 1) as listener,
        asyncio.Runner(loop_factory=loops) as runner,
    ):
        runner.run(serve(service, create_app(service), listener, run_other))
    if service.worker.failure is not None and not service.worker.loaded.is_set():
        raise service.worker.failure
    code = 0 if service.worker.failure is None and not service.processes.broken.is_set() else FAILURE
    if service.worker.stuck:
        for process in active_children():
            process.kill()  # the engine's, if it has one, and the other HTTP processes
        sys.stdout.flush()
        os._exit(code)  # an orderly exit would wait for the thread
    return code


def main() -> int:
    """Serve as the process's arguments say. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m thoughtbubbles.server", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except (ValueError, OSError) as error:
        print(f"python -m thoughtbubbles.server: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except (MemoryError, RuntimeError) as error:
        from thoughtbubbles.model import lack_of_memory  # noqa: PLC0415

        if (message := lack_of_memory(error)) is None:
            raise
        print(f"python -m thoughtbubbles.server: error: {message}", file=sys.stderr)
        return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
