"""Which native library serves, and at which instruction level; or why none does."""

import logging
import os
from dataclasses import dataclass
from functools import cache

from thoughtbubbles.engine.native.build import BuildError, find_library
from thoughtbubbles.engine.native.library import LEVELS, Library

logger = logging.getLogger(__name__)

LEVEL_VARIABLE = "TB_NATIVE_LEVEL"
"""Environment variable: the highest instruction level that may be used."""


@dataclass(frozen=True)
class Native:
    """A library and the level that this processor runs it at."""

    library: Library
    level: str


class NativeUnavailableError(Exception):
    """Why no native library serves."""


def load_native() -> Native:
    """Return the library, built on first use. Raises `NativeUnavailableError`, with the reason."""
    found = find_native()
    if isinstance(found, Native):
        return found
    raise NativeUnavailableError(found)


@cache
def find_native() -> Native | str:
    """Return the library, or log and return why none serves. Either is kept: a build may take long before it fails."""
    try:
        library = Library(find_library())
        return Native(library, choose_level(library.levels(), os.environ.get(LEVEL_VARIABLE)))
    except (BuildError, OSError, NativeUnavailableError) as error:
        logger.warning(
            "The native executor is not available: %s. The portable one computes at 0.2 to 0.4 of its speed.", error
        )
        return str(error)


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
