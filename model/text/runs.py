"""Text without a space for very long, or of nothing but spaces: bounded, since merging bytes is not linear in a word.

tiktoken takes minutes for a word of many megabytes, and gives up on as many spaces. Text is therefore cut within such
runs, and there alone, as Llama 3's tokenizer does.
"""

import re
from collections.abc import Iterator

MAX_RUN = 25_000
"""Characters that may stand in a row, all of them whitespace or none."""
_WHITESPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's, as tiktoken has it
_SPACE = re.compile(f"[{_WHITESPACE}]")
_OTHER = re.compile(f"[^{_WHITESPACE}]")


def cut_runs(text: str) -> Iterator[str]:
    """Yield `text` in parts, none of which has a run of more than `MAX_RUN` characters; most texts are one part."""
    start = 0
    for begin, end in _long_runs(text):
        for cut in range(begin + MAX_RUN, end, MAX_RUN):
            yield text[start:cut]
            start = cut
    yield text[start:]


def shorten_runs(text: str) -> str:
    """Return `text` with no more than the first `MAX_RUN` characters of each run."""
    start, parts = 0, []
    for begin, end in _long_runs(text):
        parts.append(text[start : begin + MAX_RUN])
        start = end
    return "".join([*parts, text[start:]])


def _long_runs(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of more than `MAX_RUN` characters.

    Such a run covers a whole block of half as many, so that of most texts the first characters of each block are read.
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
