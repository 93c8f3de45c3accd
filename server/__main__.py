"""`python -m server`, the same as `thoughtbubbles serve`."""

import argparse
import asyncio
import sys

from server.settings import ServerSettings, add_arguments

ENGINE_FAILURE = 1
USAGE_ERROR = 2


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop. Returns the exit code: 0 after a signal, 1 when the engine failed.

    `ValueError` or `OSError` saying which setting, checkpoint or port cannot be had.
    """
    settings = ServerSettings.from_arguments(args)
    # Here, so that --help and a wrong setting need not wait for torch.
    from server.app import create_app  # noqa: PLC0415
    from server.lifecycle import listen, serve  # noqa: PLC0415
    from server.service import Service  # noqa: PLC0415

    with listen(settings.host, settings.port) as listener:
        service = Service.create(settings)
        asyncio.run(serve(service, create_app(service), listener))
    if service.worker.failure is None:
        return 0
    if not service.worker.loaded.is_set():
        raise service.worker.failure
    return ENGINE_FAILURE


def main() -> int:
    """Run from the process's arguments."""
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except (ValueError, OSError) as error:
        print(f"python -m server: error: {error}", file=sys.stderr)
        return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
