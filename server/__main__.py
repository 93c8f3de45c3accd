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

ENGINE_FAILURE = 1
USAGE_ERROR = 2


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop. Returns the exit code: 0 after a signal, 1 when the engine failed.

    `ValueError` or `OSError` saying which setting, checkpoint or port cannot be had.
    """
    with _ended_by_signals():
        return _serve(args)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Signals end the process at once, with 0, until the event loop takes them: nobody is served yet.

    In a container the server is process 1, which has no default for SIGTERM: without a handler the signal is lost. A
    handler that raises would lose it too, where it interrupts a callback, as imports have.
    """
    before = {number: signal.signal(number, lambda *_: os._exit(0)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(args: argparse.Namespace) -> int:
    settings = read_settings(args, os.environ)
    # Here, so that --help and a wrong setting need not wait for torch.
    from uvicorn.loops.auto import auto_loop_factory  # noqa: PLC0415

    from thoughtbubbles.server.app import create_app  # noqa: PLC0415
    from thoughtbubbles.server.lifecycle import listen, serve  # noqa: PLC0415
    from thoughtbubbles.server.observe.logs import writing  # noqa: PLC0415
    from thoughtbubbles.server.service import Service  # noqa: PLC0415

    service = Service.create(settings)
    loops = auto_loop_factory()  # uvloop's, where it is installed
    with (
        writing(settings.log_format),
        listen(settings.host, settings.port) as listener,
        asyncio.Runner(loop_factory=loops) as runner,
    ):
        runner.run(serve(service, create_app(service), listener))
    if service.worker.failure is not None and not service.worker.loaded.is_set():
        raise service.worker.failure
    code = 0 if service.worker.failure is None else ENGINE_FAILURE
    if service.worker.stuck:
        for process in active_children():
            process.kill()  # the engine's, where it has one
        sys.stdout.flush()
        os._exit(code)  # an orderly end would wait for the thread
    return code


def main() -> int:
    """Run from the process's arguments."""
    parser = argparse.ArgumentParser(prog="python -m thoughtbubbles.server", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except (ValueError, OSError) as error:
        print(f"python -m thoughtbubbles.server: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except (MemoryError, RuntimeError) as error:
        from thoughtbubbles.model import lack_of_memory  # noqa: PLC0415

        if (told := lack_of_memory(error)) is None:
            raise
        print(f"python -m thoughtbubbles.server: error: {told}", file=sys.stderr)
        return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
