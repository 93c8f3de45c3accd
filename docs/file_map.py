"""Write the file map of docs/ARCHITECTURE.md from the first line of each file's docstring.

`python docs/file_map.py` rewrites the map. `python docs/file_map.py --check` changes nothing: it prints the
lines that are missing (+) or out of date (-), and exits with 1 if there are any.
"""

import argparse
import ast
import difflib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ARCHITECTURE.md"
FOLDERS = ("thoughtbubbles", "model", "engine", "server", "terminal", "training",
           "clients/python/thoughtbubbles_client", "deploy", "benchmarks", "experiments", "docs")  # fmt: skip
BEGIN = "<!-- file map: written by `python docs/file_map.py` -->\n```\n"
END = "```\n<!-- end of the file map -->\n"


def main() -> int:
    """Rewrite the map, or with --check print how it differs. Return the exit code."""
    parser = argparse.ArgumentParser(description="Write the file map of docs/ARCHITECTURE.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; print differences and exit with 1")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    old, after = rest.split(END)
    new = "".join(f"{line}\n" for line in file_map(ROOT))
    if not check:
        PAGE.write_text(f"{before}{BEGIN}{new}{END}{after}", encoding="utf-8")
        return 0
    differences = [line for line in difflib.ndiff(old.splitlines(), new.splitlines()) if line[0] in "+-"]
    print("\n".join(differences), end="\n" if differences else "")
    return 1 if differences else 0


def file_map(root: Path) -> Iterator[str]:
    """Yield one line for each Python file of `root`: a folder's own first, then its files by name."""
    yield from (_entry(path, path.name) for path in sorted(root.glob("*.py")))
    for top in FOLDERS:
        for folder, subfolders, names in os.walk(root / top):  # does not enter linked folders
            subfolders.sort()
            files = sorted(name for name in names if name.endswith(".py"))
            if not files:
                continue
            yield ""
            place = Path(folder)
            title = f"{place.relative_to(root)}/"
            yield _entry(place / "__init__.py", title) if "__init__.py" in files else title
            yield from (_entry(place / name, f"  {name}") for name in files if name != "__init__.py")


def _entry(path: Path, name: str) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{path}: no docstring; its first line is the file's entry in docs/ARCHITECTURE.md")
    return f"{name:<26} {docstring.splitlines()[0]}"


if __name__ == "__main__":
    sys.exit(main())
