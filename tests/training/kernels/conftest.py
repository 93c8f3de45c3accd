"""The kernels on a CUDA device where there is one, and in Triton's interpreter where not (tests/conftest.py)."""

import pytest

pytest.importorskip("triton", reason="the kernels are Triton's")


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few programs that each takes several rows, and strips of columns narrower than what the tests are of."""
    from thoughtbubbles.training.kernels import cross_entropy, fork_scores, gelu, heads, residual

    for module in (fork_scores, gelu, heads, residual):
        monkeypatch.setattr(module, "_MOST_PROGRAMS", 3)
    monkeypatch.setattr(gelu, "_COLUMNS", 32)
    monkeypatch.setattr(gelu, "_BACKWARD_COLUMNS", 16)
    monkeypatch.setattr(cross_entropy, "_COLUMNS", 64)
