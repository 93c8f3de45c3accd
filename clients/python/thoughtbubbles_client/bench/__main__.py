"""`python -m thoughtbubbles_client.bench`."""

import argparse
import sys

from thoughtbubbles_client.bench.command import add_arguments, run


def main() -> int:
    """Run the command. Return 0 if requests were answered, 1 if none was, 2 if nothing was measured."""
    parser = argparse.ArgumentParser(
        prog="python -m thoughtbubbles_client.bench",
        description="Load a server and measure its latency and throughput.",
    )
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
