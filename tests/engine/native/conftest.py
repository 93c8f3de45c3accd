"""The native library of this checkout, built once, and its forward pass at each level that this processor has."""

from collections.abc import Callable

import pytest

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.native.forward import NativeForward
from thoughtbubbles.engine.native.library import LEVELS, Library
from thoughtbubbles.engine.native.loading import Native, NativeUnavailableError, load_native
from thoughtbubbles.engine.portable.forward import ForkTally
from thoughtbubbles.model import Thoughtbubbles

MakeForward = Callable[[Thoughtbubbles, ForkCache], NativeForward]


@pytest.fixture(scope="session")
def library() -> Library:
    try:
        return load_native().library
    except NativeUnavailableError as error:
        pytest.skip(f"no native library: {error}")


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, library: Library) -> str:
    if request.param not in library.levels():
        pytest.skip(f"this processor lacks {request.param}")  # its kind: see tests/ci_skips.py
    return str(request.param)


@pytest.fixture
def make_native(library: Library, level: str) -> MakeForward:
    def make(model: Thoughtbubbles, cache: ForkCache) -> NativeForward:
        return NativeForward(model, cache, ForkTally(), native=Native(library, level))

    return make
