"""The index of cached prefixes: which state begins with the tokens of a new request.

States are found by hashes of their blocks of tokens, each of which includes the hash of the block before. The match is
then counted token by token, so that a shared prefix may end anywhere and hash collisions do no harm. No torch here.
"""

from collections.abc import Hashable, Iterator, Sequence
from itertools import takewhile
from operator import eq
from typing import Generic, Protocol, TypeVar

BLOCK = 16
"""Tokens of a block, and of the shortest prefix that is looked for."""


class Tokens(Hashable, Protocol):
    """The state of a sequence, compared by identity."""

    @property
    def ids(self) -> Sequence[int]:
        """Its tokens, which are only ever appended to."""


State = TypeVar("State", bound=Tokens)


class PrefixIndex(Generic[State]):
    """Finds the state with the longest common prefix of a sequence. States of different `kind` share nothing."""

    def __init__(self) -> None:
        self._by_hash: dict[int, State] = {}
        self._hashes: dict[State, list[int]] = {}  # of the whole blocks of each state

    def grow(self, kind: Hashable, state: State) -> None:
        """Index the tokens that a state has now, the first time and whenever it has grown."""
        keys, ids = self._hashes.setdefault(state, []), state.ids
        for key in _hashes(keys[-1] if keys else hash(kind), ids[len(keys) * BLOCK :]):
            self._by_hash[key] = state
            keys.append(key)

    def num_blocks(self, state: State) -> int:
        """Return how many whole blocks of a state's tokens are indexed."""
        return len(self._hashes.get(state, ()))

    def remove(self, state: State) -> None:
        """Remove a state."""
        for key in self._hashes.pop(state, ()):
            if self._by_hash.get(key) is state:
                del self._by_hash[key]

    def find(self, kind: Hashable, ids: Sequence[int]) -> tuple[State, int] | None:
        """Return a state and the length of its common prefix with `ids`; None if that is less than a block."""
        found = list(takewhile(lambda state: state is not None, map(self._by_hash.get, _hashes(hash(kind), ids))))
        if not found or found[-1] is None:
            return None
        shared = _common_prefix(found[-1].ids, ids)
        return (found[-1], shared) if shared >= BLOCK else None


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    return sum(takewhile(bool, map(eq, a, b)))


def _hashes(key: int, ids: Sequence[int]) -> Iterator[int]:
    """Yield a hash for each whole block and all tokens before it; `key` is the hash of those before `ids`."""
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        key = hash((key, *ids[start : start + BLOCK]))
        yield key
