"""Which library is loaded, which are refused, and what serves where none is."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.engine.native import build, loading
from thoughtbubbles.engine.native.library import LEVELS, Library
from thoughtbubbles.engine.native.loading import NativeUnavailableError, choose_level, find_native, load_native
from thoughtbubbles.model import Thoughtbubbles, Tokenizer


@pytest.fixture
def fresh(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package's folder with this checkout's library, and no compiler to build another with."""
    monkeypatch.setattr(build, "PACKAGED", tmp_path)
    monkeypatch.setenv("TB_NATIVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    find_native.cache_clear()
    yield Path(shutil.copy(library.path, tmp_path))
    find_native.cache_clear()


def test_a_packaged_library_needs_no_compiler(fresh: Path) -> None:
    assert load_native().library.path == fresh


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.999])
def test_a_half_written_library_is_refused(fresh: Path, kept: float, caplog: pytest.LogCaptureFixture) -> None:
    whole = fresh.read_bytes()
    fresh.write_bytes(whole[: int(kept if kept > 1 else kept * len(whole))])
    with pytest.raises(NativeUnavailableError, match="there is no C\\+\\+ compiler"):
        load_native()
    assert f"{fresh} is damaged" in caplog.text


def test_one_of_other_sources_is_not_loaded(fresh: Path) -> None:
    fresh.rename(fresh.with_name("step-0123456789abcdef-0123456789abcdef-" + fresh.stem.rpartition("-")[2] + ".so"))
    with pytest.raises(NativeUnavailableError, match="no C\\+\\+ compiler"):
        load_native()


@pytest.mark.parametrize("content", [b"not a library", b"\x7fELF" + bytes(100)])
def test_a_file_that_is_no_library_is_refused(fresh: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    fresh.write_bytes(content)
    monkeypatch.setattr(loading, "find_library", lambda: fresh)
    with pytest.raises(NativeUnavailableError, match=fresh.name):
        load_native()


def test_a_library_without_the_functions_is_refused(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import _ctypes

    monkeypatch.setattr(loading, "find_library", lambda: Path(_ctypes.__file__))
    with pytest.raises(NativeUnavailableError, match="lacks a function"):
        load_native()


def test_the_portable_executor_serves_and_one_line_says_why(
    fresh: Path, model: Thoughtbubbles, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    fresh.unlink()
    engine = [Engine(model, tokenizer, EngineConfig(cache_bytes=1 << 22)) for _ in range(2)][-1]
    [line] = caplog.messages
    assert "no C++ compiler" in line
    assert "portable" in line
    assert engine.executor.name == "portable"
    assert len(engine.generate([[1, 2]], SamplingParams(max_tokens=3, ignore_eos=True))[0].token_ids) == 3


def test_native_and_nothing_else_is_an_error_where_there_is_none(
    fresh: Path, model: Thoughtbubbles, tokenizer: Tokenizer
) -> None:
    fresh.unlink()
    with pytest.raises(ValueError, match="executor 'native' is not available: there is no C\\+\\+ compiler"):
        Engine(model, tokenizer, EngineConfig(cache_bytes=1 << 22, executor="native"))


def test_other_types_have_the_portable_executor(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    engine = Engine(model.bfloat16(), tokenizer, EngineConfig(cache_bytes=1 << 22))
    assert engine.executor.name == "portable"
    with pytest.raises(ValueError, match="it computes in float32 on a CPU, not in bfloat16"):
        Engine(model, tokenizer, EngineConfig(cache_bytes=1 << 22, executor="native"))


@pytest.mark.parametrize(
    ("most", "chosen"),
    [(None, "avx512"), ("amx", "avx512"), ("avx512", "avx512"), ("avx2", "avx2"), ("sse2", "sse2")],
)
def test_the_level_is_the_best_that_is_present_and_allowed(most: str | None, chosen: str) -> None:
    assert choose_level(["avx512", "avx2", "sse2"], most) == chosen


@pytest.mark.parametrize("most", ["avx3", "", "neon"])
def test_a_level_that_cannot_be_is_refused(most: str) -> None:
    with pytest.raises(NativeUnavailableError, match=loading.LEVEL_VARIABLE):
        choose_level(["avx512", "avx2", "sse2"], most)


def test_the_variable_caps_the_level_and_the_name_tells(
    library: Library, model: Thoughtbubbles, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = library.levels()[-1]
    monkeypatch.setenv(loading.LEVEL_VARIABLE, least)
    find_native.cache_clear()
    try:
        assert Engine(model, tokenizer, EngineConfig(cache_bytes=1 << 22)).executor.name == f"native ({least})"
    finally:
        find_native.cache_clear()
    assert set(library.levels()) <= set(LEVELS)
