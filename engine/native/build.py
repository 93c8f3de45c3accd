"""Building the native library: one file for all instruction levels of a processor family.

It is built once for its sources and compiler, unless the package brings one. Environment variables: TB_NATIVE_CACHE is
the folder where libraries are kept, TB_NATIVE_CXXFLAGS has more flags for the compiler, as sanitizers need them, and
CXX is the compiler.
"""

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
PACKAGED = Path(__file__).parent / "lib"
"""Where a package has its library: containers and wheels, which may run where no compiler is."""
_FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-w", "-pthread",
)  # fmt: skip
_CONTRACTION = {"step": "-ffp-contract=fast", "drawing": "-ffp-contract=off"}
"""Of each file that is compiled for every level. What may be drawn is compared with torch's, to the last bit."""
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
_AMX = (*_AVX512, "-mamx-tile", "-mamx-bf16")
_X86_LEVELS = {"avx2": _AVX2, "avx512": _AVX512, "amx": _AMX}
_SECONDS = 600

logger = logging.getLogger(__name__)


class BuildError(Exception):
    """Why there is no native library."""


def find_library() -> Path:
    """Return a library of these sources: the package's own, or one in the user's cache. Raises `BuildError`."""
    return _intact(PACKAGED, _stem()) or build_library(cache_directory())


def build_library(directory: Path) -> Path:
    """Return the library of these sources in a folder, built if there is none yet. Raises `BuildError`.

    Its name has hashes of its sources, of the compiler and of its own bytes: a file that is not what its name says is
    never loaded. It appears whole or not at all.
    """
    if sys.platform not in {"linux", "darwin"}:
        raise BuildError(f"it is not built on {sys.platform}")
    compiler = find_compiler()
    stem = f"{_stem()}-{_hash(_run([compiler, '--version']), _flags())}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (found := _intact(directory, stem)):
            with _locked(directory / "lock"):
                found = _intact(directory, stem) or _build(compiler, directory, stem)
    except OSError as error:
        raise BuildError(f"{directory} cannot be used: {error}") from error
    return found


def cache_directory() -> Path:
    """Return where libraries are kept: TB_NATIVE_CACHE, or a folder of the user's cache."""
    if chosen := os.environ.get("TB_NATIVE_CACHE"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "thoughtbubbles" / "native"
    except RuntimeError as error:  # there is no home
        raise BuildError(f"there is no folder for it: {error}; TB_NATIVE_CACHE names one") from error


def find_compiler() -> str:
    """Return the path of CXX, c++, g++ or clang++. Raises `BuildError` where there is none."""
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        if path := shutil.which(name):
            return path
    raise BuildError("there is no C++ compiler (c++, g++ or clang++; CXX names another)")


@cache
def _stem() -> str:
    """Return what the name of every library begins with that is built of these sources for this kind of machine."""
    sources = [(path.name, path.read_bytes()) for path in sorted(SOURCES.iterdir())]
    return f"step-{_hash(sources, _FLAGS, _CONTRACTION, _X86_LEVELS, platform.machine(), sys.platform)}"


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _flags() -> tuple[str, ...]:
    return (*_FLAGS, *shlex.split(os.environ.get("TB_NATIVE_CXXFLAGS", "")))


def _intact(directory: Path, stem: str) -> Path | None:
    """Return a library of the stem whose bytes are those that its name says."""
    for path in directory.glob(f"{stem}-*.so"):
        if path.stem.rpartition("-")[2] == _digest(path):
            return path
        logger.warning("%s is damaged: its bytes are not those that were built. It is not used.", path)
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _build(compiler: str, directory: Path, stem: str) -> Path:
    logger.info("Building the native step in %s: some 30 seconds, once.", directory)
    levels = dict(_X86_LEVELS) if platform.machine() in {"x86_64", "AMD64"} else {}
    without = [] if _accepts(compiler, _AMX) else ["-DTB_WITHOUT_AMX"]
    if without:
        levels.pop("amx", None)
    # Of a function that several objects have, the linker takes the first: one that every processor can run.
    units = [[f"{SOURCES}/main.cpp", *without], [f"{SOURCES}/threads.cpp"]]
    units += [
        [f"{SOURCES}/{file}.cpp", contraction, f"-DLEVEL={name}", *flags]
        for name, flags in ({"plain": ()} | levels).items()
        for file, contraction in _CONTRACTION.items()
    ]
    for left in directory.glob("building-*"):  # by a process that was killed: this one has the lock
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix="building-") as folder:
        objects = [f"{folder}/{i}.o" for i in range(len(units))]
        jobs = [[compiler, *_flags(), "-c", *unit, "-o", to] for unit, to in zip(units, objects, strict=True)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, jobs))
        built = Path(folder) / "step.so"
        _run([compiler, *_flags(), "-shared", "-o", str(built), *objects])
        return built.replace(directory / f"{stem}-{_digest(built)}.so")


def _accepts(compiler: str, flags: tuple[str, ...]) -> bool:
    try:
        _run([compiler, *flags, "-fsyntax-only", "-x", "c++", os.devnull])
    except BuildError:
        return False
    return True


def _run(command: list[str]) -> str:
    """Return what a command of the user's own compiler prints. Raises `BuildError` with its first error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} took more than {_SECONDS} seconds") from error
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise BuildError(f"{command[0]} failed: {first}")
    return done.stdout


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time build."""
    import fcntl  # noqa: PLC0415 - not on Windows

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
