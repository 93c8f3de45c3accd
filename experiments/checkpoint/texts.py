"""Texts beside the corpus: prose out of Python code, definitions of WordNet, and how much of one text is in another."""

import ast
import re
from collections.abc import Iterable, Iterator
from inspect import cleandoc
from pathlib import Path

PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
"""Of speech: the end of each file's name, and its word."""
ONE_IN = 40
"""Of so many of WordNet's entries one is taken: 280 kB."""
ENTRIES = 20
"""Entries of a document."""
SHORTEST = 120
"""Characters of a paragraph of prose."""
LETTERS = 0.93
"""Least share of letters and spaces in prose."""
WORDS = 13
"""Length of the sequences of words that are looked for in another text."""


def prose(code: str) -> str:
    """Return the paragraphs of English in the docstrings of a Python file, "" if it does not parse."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, kinds)]
    parts = [part for text in found if text for part in re.split(r"\n\s*\n", cleandoc(text))]
    return "\n\n".join(" ".join(part.split()) for part in parts if _is_prose(part))


def definitions(wordnet: Path) -> list[str]:
    """Return documents of WordNet's definitions, from the folder with its `data.noun` and so on."""
    entries = [entry for end, part in PARTS.items() for entry in _entries(wordnet / f"data.{end}", part)]
    return ["\n".join(entries[start : start + ENTRIES]) + "\n" for start in range(0, len(entries), ENTRIES)]


def shared(texts: Iterable[str], others: Iterable[str]) -> float:
    """Return the share of the sequences of 13 words in `texts` that are in `others` too."""
    wanted = {sequence for text in texts for sequence in _sequences(text)}
    found = {sequence for other in others for sequence in _sequences(other) if sequence in wanted}
    return len(found) / max(1, len(wanted))


def _is_prose(part: str) -> bool:
    letters = sum(each.isalpha() or each.isspace() for each in part)
    return len(part) >= SHORTEST and letters >= LETTERS * len(part) and part.lstrip()[:1].isupper()


def _entries(path: Path, part: str) -> Iterator[str]:
    """Yield one in `ONE_IN` entries of a file: its words, and the gloss after the bar."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("  ")]
    for line in lines[::ONE_IN]:
        fields, _, gloss = line.partition(" | ")
        _, _, _, count, *rest = fields.split()
        words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in rest[: 2 * int(count, 16) : 2]]
        yield f"{', '.join(words)} ({part}): {gloss.strip()}"


def _sequences(text: str) -> Iterator[str]:
    words = re.findall(r"[a-z]+", text.lower())
    yield from (" ".join(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1))
