"""What every test may count on: one thread per core at most, torch's defaults restored, devices asked for by marker."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# A machine may be slow: no example fails for the time that it takes.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")

pytest_plugins = ["tests.ci_skips", "tests.sampling"]

# Triton reads it as it is first imported, which the compiler of training does too: no folder below is early enough.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# One thread: the small tensors of tests gain nothing from more, and on a busy machine threads that wait for each other
# made a test fifteen times slower.
torch.set_num_threads(1)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes are named by their number: compressed ones may have the time in them, and workers must agree on names."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Refuse parameters in the order of a set, which differs between workers."""
    for marker in metafunc.definition.iter_markers("parametrize"):
        assert not isinstance(marker.args[1], set | frozenset), f"{metafunc.definition.nodeid}: a set has no order"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    devices = torch.cuda.device_count()
    for item in items:
        for marker, needed in (("gpu", 1), ("multi_gpu", 2)):
            if item.get_closest_marker(marker) and devices < needed:
                item.add_marker(pytest.mark.skip(reason=f"needs {needed} CUDA device(s), found {devices}"))


@pytest.fixture(autouse=True)
def torch_defaults() -> Iterator[None]:
    """Each test starts from seed 0, and a default dtype that one sets does not reach the next."""
    dtype = torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
