"""Build the native step, and say what serves on this processor: `python -m thoughtbubbles.engine.native`."""

import sys

from thoughtbubbles.engine.native.loading import NativeUnavailableError, load_native


def main() -> int:
    """Return 0 where there is a native step, 1 where there is none."""
    try:
        native = load_native()
    except NativeUnavailableError as error:
        print(f"No native step: {error}", file=sys.stderr)
        return 1
    print(f"{native.library.path}: {native.level}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
