"""Which native library serves, and at which instruction level; or why none does."""

import os
from dataclasses import dataclass
from functools import cache

from thoughtbubbles.engine.native.build import BuildError, find_library
from thoughtbubbles.engine.native.library import LEVELS, Library

LEVEL_VARIABLE = "TB_NATIVE_LEVEL"
"""Environment variable: the highest instruction level that may be used."""


@dataclass(frozen=True)
class Native:
    """A library and the level that this processor runs it at."""

    library: Library
    level: str


class NativeUnavailableError(Exception):
    """Why no native library serves."""


@cache
def load_native() -> Native:
    """Return the library, built on first use. Raises `NativeUnavailableError`, with the reason."""
    try:
        library = Library(find_library())
    except (BuildError, OSError) as error:
        raise NativeUnavailableError(str(error)) from error
    return Native(library, choose_level(library.levels(), os.environ.get(LEVEL_VARIABLE)))


def choose_level(present: list[str], most: str | None) -> str:
    """Return the best level that is present, none above `most`. Raises `NativeUnavailableError` for an unknown one."""
    if most is None:
        return present[0]
    if most not in LEVELS:
        raise NativeUnavailableError(f"{LEVEL_VARIABLE} must be one of {', '.join(LEVELS)}, not {most!r}")
    below = [level for level in present if LEVELS.index(level) >= LEVELS.index(most)]
    if not below:
        raise NativeUnavailableError(
            f"this processor has no level up to {LEVEL_VARIABLE}={most}; it has {', '.join(present)}"
        )
    return below[0]
