"""Limit runs: stretches of text with no whitespace, or with nothing else.

Merging bytes takes more than linear time in the length of a word: tiktoken needs minutes for a word of many megabytes,
and fails on as many spaces. Text is therefore cut inside such runs, and nowhere else, as Llama 3's tokenizer does.
"""

import re
from collections.abc import Iterator

MAX_RUN = 25_000
"""Most characters of a run."""
_WHITESPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's, as tiktoken has it
_SPACE = re.compile(f"[{_WHITESPACE}]")
_OTHER = re.compile(f"[^{_WHITESPACE}]")


def cut_runs(text: str) -> Iterator[str]:
    """Yield `text` in parts without runs of more than `MAX_RUN` characters; most texts are one part."""
    start = 0
    for begin, end in _long_runs(text):
        for cut in range(begin + MAX_RUN, end, MAX_RUN):
            yield text[start:cut]
            start = cut
    yield text[start:]


def shorten_runs(text: str) -> str:
    """Return `text` with each run cut to its first `MAX_RUN` characters."""
    start, parts = 0, []
    for begin, end in _long_runs(text):
        parts.append(text[start : begin + MAX_RUN])
        start = end
    return "".join([*parts, text[start:]])


def _long_runs(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each run of more than `MAX_RUN` characters.

    A run that long covers at least one whole block of `MAX_RUN // 2` characters. So for most texts only the first
    characters of each block are read.
    """
    size = MAX_RUN // 2
    at = 0
    while at + size <= len(text):
        space, other = (kind.search(text, at, at + size) for kind in (_SPACE, _OTHER))
        if space and other:
            at += size
            continue
        ends_run = _OTHER if space else _SPACE
        before = max(0, at - size)
        begin = max((match.end() for match in ends_run.finditer(text, before, at)), default=before)
        after = ends_run.search(text, at + size)
        end = after.start() if after else len(text)
        if end - begin > MAX_RUN:
            yield begin, end
        at = end - end % size
