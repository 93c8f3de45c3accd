"""Compile grammars with llguidance; as a script, find out in a process of its own whether one compiles within limits.

llguidance has limits, but within them a regular expression of 60,000 characters or `multipleOf` 1,000,003 takes
minutes, and nothing stops a thread. A process can be ended. The script imports nothing of ours, so it starts fast.
"""

import json
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tiktoken
    from llguidance import LLMatcher, LLTokenizer

CPU_SECONDS = 2.0
"""Processor time that the script has for a grammar."""
MEMORY_BYTES = 2 << 30
"""Address space that it has, stacks included."""
STACK_BYTES = 256 << 20
"""llguidance compiles by recursion, as deep as rules refer to each other."""
MOST_SYMBOLS = 50_000
"""Symbols in the productions of a grammar."""
MOST_LEXER_STATES = 50_000
"""States of a grammar's lexer, of one to two kilobytes. The copies of a matcher share it, and its states add up."""
MAX_REASON_LENGTH = 300
"""Most characters of what llguidance says is wrong."""
_STACK_SIZE = threading.Lock()
"""Held while the size of new stacks, a setting of the process, is another."""


def make_vocabulary(encoding: "tiktoken.Encoding") -> "LLTokenizer":
    """Return llguidance's form of a vocabulary whose special token is end-of-text. Takes a second for 50,000 tokens."""
    from llguidance.tiktoken import lltokenizer_from_encoding  # noqa: PLC0415 - an extra

    return lltokenizer_from_encoding(encoding)


def compile_grammar(vocabulary: "LLTokenizer", definition: str) -> "LLMatcher":
    """Return a matcher that no token has been given to. Raise `ValueError` with the reason if there is none.

    `definition` is in llguidance's own form. The first mask is computed too, since some grammars only then fail.
    """
    from llguidance import LLMatcher, LLParserLimits  # noqa: PLC0415 - an extra

    limits = LLParserLimits(max_grammar_size=MOST_SYMBOLS, max_lexer_states=MOST_LEXER_STATES, verbose_errors=False)
    made: list[LLMatcher] = []

    def make() -> None:
        made.append(LLMatcher(vocabulary, definition, log_level=0, limits=limits))

    _run_with_deep_stack(make)
    matcher = made[0]
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise ValueError(reason(matcher))
    return matcher


def reason(matcher: "LLMatcher") -> str:
    """Return on one line why a matcher is in its error state."""
    text = " ".join(matcher.get_error().removesuffix("<non-verbose/>").split())
    if text.startswith("NoExtension"):
        return "no text matches it"
    return text if len(text) <= MAX_REASON_LENGTH else f"{text[:MAX_REASON_LENGTH]}…"


def _run_with_deep_stack(work: Callable[[], None]) -> None:
    """Run `work` on a thread whose stack has `STACK_BYTES`."""
    with _STACK_SIZE:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread = threading.Thread(target=work, name="grammar")
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()


def main() -> None:
    """Read a vocabulary and then definitions, a line each; for each write a line, why it does not compile or null.

    The vocabulary has a `pattern`, the `ranks` as strings of bytes, and `end_of_text`; beside it are the `seconds` of
    processor time for each definition.
    This process ends without an answer at a definition that takes too much time or memory.
    """
    import resource  # noqa: PLC0415 - not on Windows

    import tiktoken  # noqa: PLC0415 - this script alone needs it

    first = json.loads(sys.stdin.readline())
    ranks = {token.encode("latin-1"): rank for rank, token in enumerate(first["ranks"])}
    special = {first["end_of_text"]: len(ranks)}
    vocabulary = make_vocabulary(
        tiktoken.Encoding("", pat_str=first["pattern"], mergeable_ranks=ranks, special_tokens=special)
    )
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, first["seconds"])  # its signal ends the process
        try:
            compile_grammar(vocabulary, json.loads(line))
            answer = None
        except ValueError as error:
            answer = str(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
