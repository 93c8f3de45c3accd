"""Compiled grammars of one vocabulary: each is compiled once, within limits, and kept for the next requests."""

import json
import subprocess
import sys
import weakref
from collections import OrderedDict
from functools import lru_cache, partial
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING

from thoughtbubbles.engine.errors import InvalidRequest
from thoughtbubbles.engine.structured import compilation
from thoughtbubbles.engine.structured.grammar import Grammar
from thoughtbubbles.engine.structured.state import GrammarState
from thoughtbubbles.model import Tokenizer, install_command
from thoughtbubbles.model.text.tokenizer import END_OF_TEXT, PATTERN

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

MOST_KEPT = 128
"""Compiled grammars, and reasons why others do not compile, that are kept."""
_JSON_OPTIONS: "JsonCompileOptions" = {
    "whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?", "lenient": False,
    "coerce_one_of": False,
}  # fmt: skip
"""The only white space is one space after a comma or colon: a weak model would write little else. No keyword of a
schema is ignored."""


class GrammarCompiler:
    """Compiles grammars for a tokenizer. Any thread may use it; a grammar that is kept waits for no other."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kept: OrderedDict[tuple[str, str], LLMatcher | str] = OrderedDict()
        """By kind and text, the one used last at the end: a matcher that no token was given to, or what is wrong."""
        self._lock = Lock()
        """Held for `_kept`."""
        self._compiling = Lock()
        """Held while a grammar is compiled."""
        self._vocabulary: LLTokenizer | None = None
        self._checker: subprocess.Popen[str] | None = None

    def start(self, grammar: Grammar) -> GrammarState:
        """Return the state of a completion that has no token yet.

        Raises `InvalidRequest` as `compiled`, and if the process that compiles first cannot be started.
        """
        try:
            matcher = self.compiled(grammar)
        except OSError as error:
            message = f"{grammar.param} cannot be compiled at present: {error}"
            raise InvalidRequest(message, param=grammar.param, code="invalid_grammar") from error
        return GrammarState(matcher, self._tokenizer.vocab_size, partial(self._forget, grammar))

    def compiled(self, grammar: Grammar) -> "LLMatcher":
        """Return a matcher that no token was given to. Raises `InvalidRequest` if `grammar` has a mistake.

        Takes at most some seconds for a grammar that is not kept, and otherwise microseconds. Raises `OSError` if the
        process that compiles first cannot be started.
        """
        if find_spec("llguidance") is None:
            message = f"{grammar.param} needs the extra structured: {install_command('structured')}"
            raise InvalidRequest(message, param=grammar.param, code="missing_extra")
        matcher = self._matcher(grammar)
        if isinstance(matcher, str):
            message = f"{grammar.param} cannot be used: {matcher}"
            raise InvalidRequest(message, param=grammar.param, code="invalid_grammar")
        return matcher

    def is_compiled(self, grammar: Grammar) -> bool:
        """Return whether a grammar is kept, or what is wrong with it: `compiled` then takes microseconds."""
        with self._lock:
            return (grammar.kind, grammar.text) in self._kept

    def _matcher(self, grammar: Grammar) -> "LLMatcher | str":
        """Return a matcher of its own for a completion, or what is wrong with the grammar."""
        if (found := self._find(grammar)) is None:
            with self._compiling:
                if (found := self._find(grammar)) is None:  # nobody else compiled it meanwhile
                    compiled = self._compile(grammar)
                    found = _own(compiled)
                    self._keep(grammar, compiled)
        return found

    def _find(self, grammar: Grammar) -> "LLMatcher | str | None":
        with self._lock:
            found = self._kept.get((grammar.kind, grammar.text))
            if found is None:
                return None
            self._kept.move_to_end((grammar.kind, grammar.text))
            return _own(found)

    def _keep(self, grammar: Grammar, found: "LLMatcher | str") -> None:
        with self._lock:
            self._kept[grammar.kind, grammar.text] = found
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)

    def _forget(self, grammar: Grammar) -> None:
        """Let the next request compile a grammar anew: the lexer that its completions share is full."""
        with self._lock:
            self._kept.pop((grammar.kind, grammar.text), None)

    def _compile(self, grammar: Grammar) -> "LLMatcher | str":
        try:
            definition = _definition(grammar)
        except ValueError as error:
            return str(error)
        if (mistake := self._check(definition)) is not None:
            return mistake
        if self._vocabulary is None:
            self._vocabulary = compilation.make_vocabulary(self._tokenizer.encoding)
        try:
            return compilation.compile_grammar(self._vocabulary, definition)
        except ValueError as error:
            return str(error)

    def _check(self, definition: str) -> str | None:
        """Return why a definition does not compile within limits, or None if it does."""
        checker = self._checker = self._checker or self._start_checker()
        assert checker.stdin, "its input is a pipe"
        assert checker.stdout, "its output is a pipe"
        try:
            checker.stdin.write(json.dumps(definition) + "\n")
            checker.stdin.flush()
            answer = checker.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            _end(checker)
            self._checker = None
            return f"it takes more than {compilation.CPU_SECONDS:g} seconds or too much memory to compile"
        mistake: str | None = json.loads(answer)
        return mistake

    def _start_checker(self) -> "subprocess.Popen[str]":
        """Start the process that compiles first; it ends with this one, or with this object."""
        tokens = [self._tokenizer.token_bytes(i).decode("latin-1") for i in range(self._tokenizer.end_of_text)]
        vocabulary = {"pattern": PATTERN, "ranks": tokens, "end_of_text": END_OF_TEXT}
        first = json.dumps(vocabulary | {"seconds": compilation.CPU_SECONDS})
        checker = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, "-P", compilation.__file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
        )  # fmt: skip
        weakref.finalize(self, _end, checker)
        assert checker.stdin, "its input is a pipe"
        checker.stdin.write(first + "\n")
        return checker


@lru_cache(maxsize=2)
def compiler_of(tokenizer: Tokenizer) -> GrammarCompiler:
    """Return the compiler of a tokenizer, which all that use the tokenizer share."""
    return GrammarCompiler(tokenizer)


def check_grammar(grammar: Grammar, tokenizer: Tokenizer) -> None:
    """Compile a grammar, so that an engine of this process finds it. Raises as `GrammarCompiler.compiled`."""
    compiler_of(tokenizer).compiled(grammar)


def is_compiled(grammar: Grammar, tokenizer: Tokenizer) -> bool:
    """Return whether an engine of this process finds a grammar compiled."""
    return compiler_of(tokenizer).is_compiled(grammar)


def _own(kept: "LLMatcher | str") -> "LLMatcher | str":
    """Return a matcher for a completion, from the one that is kept, or what is wrong with the grammar."""
    return kept if isinstance(kept, str) else kept.deep_copy()


def _definition(grammar: Grammar) -> str:
    """Return a grammar in llguidance's own form. Raise `ValueError` if it has none."""
    from llguidance import LLMatcher, grammar_from  # noqa: PLC0415 - an extra

    if grammar.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(grammar.text, overrides=_JSON_OPTIONS)
    return grammar_from(grammar.kind, grammar.text)


def _end(checker: "subprocess.Popen[str]") -> None:
    """End the process, and wait until it has."""
    checker.kill()
    checker.communicate()
