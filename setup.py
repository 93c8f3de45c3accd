"""Packages the project; TB_NATIVE_WHEEL=1 puts the native library into the wheel. pyproject.toml has all else.

The library is no Python extension: it fits every version of Python, and one wheel a platform suffices.
"""

import importlib.util
import os
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

PACKAGE = Path("thoughtbubbles", "engine", "native")


class Build(build_py):
    """Builds the library among the modules."""

    def run(self) -> None:
        """Raise `BuildError` where that fails: who asks for such a wheel wants no other."""
        super().run()
        if not self.editable_mode:
            path = Path(__file__).parent / PACKAGE / "build.py"
            spec = importlib.util.spec_from_file_location("build", path)  # without our package, which needs torch
            assert spec is not None
            assert spec.loader is not None
            spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
            folder = Path(self.build_lib) / PACKAGE / "lib"
            module.build_library(folder)
            (folder / "lock").unlink()


class Native(Distribution):
    """Has machine code, so that its wheel is one of a platform."""

    def has_ext_modules(self) -> bool:
        """Return True: the library counts as one."""
        return True


class Wheel(bdist_wheel):
    """Names the platform, but no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag."""
        return "py3", "none", super().get_tag()[2]


if os.environ.get("TB_NATIVE_WHEEL") == "1":
    setup(cmdclass={"build_py": Build, "bdist_wheel": Wheel}, distclass=Native)
else:
    setup()
