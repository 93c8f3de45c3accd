"""Build the native step where there is none, and print what serves: `python -m thoughtbubbles.engine.native`."""

import argparse
import logging
import sys

from thoughtbubbles.engine.native.build import PACKAGED, BuildError, build_library
from thoughtbubbles.engine.native.loading import NativeUnavailableError, load_native


def main() -> int:
    """Return 0 where there is a native step, 1 where there is none."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m thoughtbubbles.engine.native", description=__doc__)
    parser.add_argument("--package", action="store_true", help="build it into the installed package, not the cache")
    try:
        if parser.parse_args().package:
            build_library(PACKAGED)
        native = load_native()
    except BuildError as error:
        print(f"The native executor is not available: {error}", file=sys.stderr)
        return 1
    except NativeUnavailableError:  # the log says why
        return 1
    print(f"{native.library.path}: {native.level}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
