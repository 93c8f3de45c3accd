"""Hooks of the documentation site: pages from the whole repository, and links as on a forge."""

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md"}
"""Pages of the repository that have another name on the site."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^ *(`{3,}|~{3,})")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}
LARGEST_PAGE = 100_000
"""Bytes up to which a file that a page links to becomes a page; a larger one is copied."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md as the first page, notebooks as pages, and each file of the repository that a page links to."""
    for path in sorted((ROOT / "docs").rglob("*.ipynb")):
        found = files.get_file_from_path(path.relative_to(ROOT / "docs").as_posix())
        assert found is not None
        files.remove(found)
        files.append(File.generated(config, Path(found.src_uri).with_suffix(".md").as_posix(), content=_notebook(path)))
    _add(files, config, "README.md")
    for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        _add(files, config, name)
    queue = [file for file in files if file.is_documentation_page()]
    while queue:
        page = queue.pop()
        for target, _ in LINK.findall(page.content_string):
            added = _add(files, config, posixpath.normpath(posixpath.join(_folder(page.src_uri), target)))
            if added is not None and added.is_documentation_page():
                queue.append(added)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Return a page's text with links to the site's pages, and lists as a forge reads them."""
    source = page.file.src_uri

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(_folder(source), found[1]))
        return posixpath.relpath(_on_site(target), posixpath.dirname(source) or ".") + (found[2] or "")

    return LINK.sub(link, _lists(markdown))


def _on_site(path: str) -> str:
    """Return where the site has a file of the repository; `docs/` is its root."""
    name = PAGES.get(path, path.removeprefix("docs/"))
    if name.endswith(".ipynb"):
        return name.removesuffix(".ipynb") + ".md"
    file = ROOT / path
    if file.is_dir():
        return f"{name}/index.md"
    as_page = file.is_file() and not _is_asset(file) and file.suffix != ".md"
    return f"{name}.md" if as_page else name


def _folder(uri: str) -> str:
    """Return the folder of the repository that links of a page start from."""
    for path, name in PAGES.items():
        if name == uri:
            return posixpath.dirname(path)
    return posixpath.dirname(f"docs/{uri}" if (ROOT / "docs" / _source(uri)).exists() else uri)


def _source(uri: str) -> str:
    """Return the file that a page of the site is made of."""
    notebook = Path(uri).with_suffix(".ipynb")
    return notebook.as_posix() if (ROOT / "docs" / notebook).exists() else uri


def _is_asset(file: Path) -> bool:
    return file.suffix in {".png", ".svg", ".gz", ".jsonl"} or file.stat().st_size > LARGEST_PAGE


def _add(files: Files, config: MkDocsConfig, path: str) -> File | None:
    """Add a file of the repository, unless the site has it. Return what was added."""
    file, uri = ROOT / path, _on_site(path)
    if not file.exists() or files.get_file_from_path(uri) is not None:
        return None
    if file.is_file() and (file.suffix == ".md" or _is_asset(file)):
        added = File.generated(config, uri, abs_src_path=str(file))
    else:
        added = File.generated(config, uri, content=_list(file) if file.is_dir() else _code(file))
    added.inclusion = InclusionLevel.NOT_IN_NAV
    files.append(added)
    return added


def _list(folder: Path) -> str:
    """Return a page with the files of a folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    items = [f"- [{name}]({name})" for name in names if "__pycache__" not in name]
    return _unsearched(folder, "\n".join(items))


def _code(file: Path) -> str:
    """Return a page with a file's text."""
    text = file.read_text(encoding="utf-8").rstrip()
    return _unsearched(file, f"~~~~~~{LANGUAGES.get(file.suffix, 'text')}\n{text}\n~~~~~~")


def _unsearched(path: Path, text: str) -> str:
    return f"---\nsearch: {{exclude: true}}\n---\n\n# {path.relative_to(ROOT).as_posix()}\n\n{text}\n"


def _lists(markdown: str) -> str:
    """Return Markdown with an empty line before each list, and four columns for a nested one.

    Python-Markdown needs both; a forge does not.
    """
    lines: list[str] = []
    fence, in_list = "", False
    for line in markdown.splitlines():
        if found := FENCE.match(line):
            fence = "" if fence and found[1].startswith(fence) else fence or found[1]
        elif not fence:
            item = re.match(r"( *)(?:[-*]|\d+\.) ", line)
            if item and not in_list and lines and lines[-1].strip():
                lines.append("")
            if in_list and line.startswith("  "):
                line = f"  {line}" if line.startswith("  ") and not line.startswith("    ") else line  # noqa: PLW2901
            in_list = bool(item) or (in_list and (not line.strip() or line.startswith(" ")))
        lines.append(line)
    return "\n".join(lines) + "\n"


def _notebook(path: Path) -> str:
    """Return a notebook as Markdown, with the outputs that it has."""
    parts: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source:
            parts.append(f"```python\n{source}\n```")
            parts.extend(_outputs(cell["outputs"]))
    return "\n\n".join(parts) + "\n"


def _outputs(outputs: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the text of a cell's outputs, then its pictures."""
    data = [output.get("data", {}) for output in outputs]
    pictures = ["".join(each["image/png"]).strip() for each in data if "image/png" in each]
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    values = [] if pictures else ["".join(each["text/plain"]) for each in data if "text/plain" in each]
    if text := "\n".join(filter(None, [printed.rstrip(), *values])):
        yield f"```text\n{text}\n```"
    yield from (f"![Output of the cell above](data:image/png;base64,{picture})" for picture in pictures)
