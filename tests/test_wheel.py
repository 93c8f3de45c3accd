"""A wheel has one top-level name, `thoughtbubbles`, and below it all that is ours; it is used without a checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "thoughtbubbles"
FLOORS = ("model", "engine", "server", "terminal", "training")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, because a build writes into the source folder."""
    source = tmp_path_factory.mktemp("source")
    for name in (
        "pyproject.toml",
        "setup.py",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "constraints.txt",
    ):
        shutil.copy(ROOT / name, source)
    for folder in (PACKAGE, *FLOORS, "tests"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True)
    return source


def build(kind: str, source: Path, out: Path, **environment: str) -> Path:
    """Return what setuptools builds from `source` for pip: a wheel, an sdist, the wheel of an editable install."""
    script = f"import sys; from setuptools.build_meta import build_{kind}; build_{kind}(sys.argv[1])"
    out.mkdir()
    environment = {**os.environ, "TB_NATIVE_WHEEL": "", **environment}
    subprocess.run([sys.executable, "-c", script, out], cwd=source, check=True, capture_output=True, env=environment)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("wheel", source, tmp_path_factory.mktemp("built") / "wheel"))


def contents(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def metadata(wheel: zipfile.ZipFile) -> dict[str, str]:
    return {
        name.split(".dist-info/")[-1]: wheel.read(name).decode() for name in wheel.namelist() if "dist-info" in name
    }


def test_the_only_top_level_name_is_the_projects(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/", maxsplit=1)[0] for name in contents(wheel)} == {PACKAGE}
    assert metadata(wheel)["top_level.txt"].split() == [PACKAGE]


def test_the_wheel_holds_every_file_of_our_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tracked = {
        f"{PACKAGE}/{path.relative_to(ROOT)}"
        for floor in FLOORS
        for path in (ROOT / floor).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert contents(wheel) == tracked | {f"{PACKAGE}/{name}.py" for name in ("__init__", "__main__", "hf")}


def test_a_wheel_built_from_the_sdist_has_the_same_files(source: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """An sdist has folders where a checkout has links."""
    shutil.unpack_archive(build("sdist", source, tmp_path / "out"), tmp_path / "sdist", filter="data")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    assert {path.name for path in unpacked.iterdir()} == {
        PACKAGE, f"{PACKAGE}.egg-info", "pyproject.toml", "setup.py", "setup.cfg", "MANIFEST.in", "PKG-INFO",
        "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt",
    }  # fmt: skip
    again = zipfile.ZipFile(build("wheel", unpacked, tmp_path / "again"))
    assert {name: again.read(name) for name in contents(again)} == {name: wheel.read(name) for name in contents(wheel)}


def test_the_wheel_has_the_licence_and_one_command(wheel: zipfile.ZipFile) -> None:
    about = metadata(wheel)
    assert about["licenses/LICENSE"] == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert about["entry_points.txt"].split() == ["[console_scripts]", PACKAGE, "=", f"{PACKAGE}:main"]


def run(*arguments: str, cwd: Path, installed: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with what the folder `installed` holds."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("THOUGHTBUBBLES_")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment | {"PYTHONPATH": str(installed or "")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_an_installation_says_which_checkpoint_it_needs(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    wheel.extractall(site)
    elsewhere.mkdir()
    served = run("-m", PACKAGE, "serve", "--port", "0", cwd=elsewhere, installed=site)
    assert (served.returncode, served.stdout) == (2, "")
    message = (
        r"thoughtbubbles: error: no checkpoint is given, .* --checkpoint\. .* checkpoints/thoughtbubbles-11m; .*\n"
    )
    assert re.fullmatch(message, served.stderr)
    shipped = str(ROOT / "checkpoints" / "thoughtbubbles-11m")
    assert run("-m", PACKAGE, "inspect", shipped, cwd=elsewhere, installed=site).returncode == 0


def test_the_wheel_fits_every_machine(wheel: zipfile.ZipFile) -> None:
    assert Path(str(wheel.filename)).name.endswith("-py3-none-any.whl")


@pytest.mark.slow
def test_a_wheel_may_bring_the_native_library(source: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """One for each platform, for all versions of Python; it needs no compiler where it is installed."""
    out = tmp_path / "out"
    native = zipfile.ZipFile(build("wheel", source, out, TB_NATIVE_WHEEL="1", TB_NATIVE_CXXFLAGS="-O0"))
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert next(out.iterdir()).name.endswith(f"-py3-none-{platform}.whl")
    [library] = contents(native) - contents(wheel)
    assert re.fullmatch(rf"{PACKAGE}/engine/native/lib/step-[0-9a-f-]+\.so", library)
    native.extractall(tmp_path / "site")
    script = """
import os
os.environ.update(PATH="", TB_NATIVE_CACHE="missing")
from thoughtbubbles.engine.native import loading
print(loading.load_native().library.path)
"""
    ran = run("-c", script, cwd=tmp_path, installed=tmp_path / "site")
    assert ran.stdout.strip() == str(tmp_path / "site" / library), ran.stderr


def test_an_editable_installation_imports_from_the_checkout(source: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(build("editable", source, tmp_path / "out")).extractall(tmp_path / "site")
    script = f"""
import site, sys
site.addsitedir({str(tmp_path / "site")!r})
sys.path += {sys.path}
import thoughtbubbles.server.app, thoughtbubbles.training.train
print(thoughtbubbles.__file__, thoughtbubbles.server.app.__file__)
"""
    ran = run("-Sc", script, cwd=tmp_path)
    package = source / PACKAGE
    assert ran.stdout.split() == [str(package / "__init__.py"), str(package / "server" / "app.py")], ran.stderr
