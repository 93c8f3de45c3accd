"""Requests that wait for their grammars, which are compiled beside the engine's steps.

The server has compiled a grammar before it sends a request. An engine on a thread finds it; one in a process of its own
compiles it anew, which takes as long as many steps.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from thoughtbubbles.engine import Grammar, InvalidRequest, check_grammar, is_compiled
from thoughtbubbles.model import Tokenizer
from thoughtbubbles.server.bridge.commands import Add


class Compiling:
    """Commands whose requests have grammars that are being compiled. Belongs to the loop's thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grammars")  # one grammar is compiled at a time anyway
        self._waiting: list[tuple[Add, list[Future[None]]]] = []
        self._popped: Add | None = None

    def __bool__(self) -> bool:
        """Whether commands wait."""
        return bool(self._waiting)

    @property
    def is_done(self) -> bool:
        """Whether the grammars of a command are compiled."""
        return any(_are_done(futures) for _, futures in self._waiting)

    def hold(self, command: Add) -> bool:
        """Keep a command back if one of its grammars is new, and start to compile it. Return whether it is kept.

        One that `pop` has returned is not kept again: the engine says why its grammar was not compiled.
        """
        popped, self._popped = self._popped, None
        if command is popped:
            return False
        grammars = {request.params.grammar for request in command.requests}
        new = [each for each in grammars if each is not None and not is_compiled(each, self._tokenizer)]
        if new:
            self._waiting.append((command, [self._pool.submit(self._compile, grammar) for grammar in new]))
        return bool(new)

    def pop(self) -> Add:
        """Remove and return the first command whose grammars are compiled, or cannot be: `is_done`."""
        at = next(i for i, (_, futures) in enumerate(self._waiting) if _are_done(futures))
        self._popped, _ = self._waiting.pop(at)
        return self._popped

    def remove(self, request_ids: Sequence[str]) -> list[Add]:
        """Remove requests from the commands that wait. Return the commands with what was removed of them."""
        ids, removed, waiting = set(request_ids), list[Add](), self._waiting
        self._waiting = []
        for command, futures in waiting:
            gone = [request for request in command.requests if request.request_id in ids]
            left = [request for request in command.requests if request.request_id not in ids]
            removed += [replace(command, requests=gone)] if gone else []
            self._waiting += [(replace(command, requests=left), futures)] if left else []
        return removed

    def close(self) -> None:
        """Compile nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: Grammar) -> None:
        with suppress(InvalidRequest):  # kept as well: the engine raises it again
            check_grammar(grammar, self._tokenizer)


def _are_done(futures: Sequence[Future[None]]) -> bool:
    return all(future.done() for future in futures)
