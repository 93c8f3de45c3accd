"""Which cached state begins with the tokens of a new request.

States are found by the hashes of their blocks of tokens, each hash taking in those before it, and the match is then
counted token by token: what is shared may end anywhere, and equal hashes of other tokens do no harm. No torch in here.
"""

from collections.abc import Hashable, Iterator, Sequence
from itertools import takewhile
from operator import eq
from typing import Generic, Protocol, TypeVar

BLOCK = 16
"""Tokens of a block; beginnings shorter than one are not looked for."""


class Tokens(Hashable, Protocol):
    """Something that holds the state of a sequence, and is nobody else."""

    @property
    def ids(self) -> Sequence[int]:
        """Its tokens, which only ever grow at the end."""


State = TypeVar("State", bound=Tokens)


class PrefixIndex(Generic[State]):
    """Finds, for tokens, the state that shares their longest beginning. `kind` keeps apart what must not be shared."""

    def __init__(self) -> None:
        self._by_hash: dict[int, State] = {}
        self._hashes: dict[State, list[int]] = {}  # of the whole blocks of each state

    def grow(self, kind: Hashable, state: State) -> None:
        """Take note of what tokens a state has got, also of its first."""
        keys, ids = self._hashes.setdefault(state, []), state.ids
        for key in _hashes(keys[-1] if keys else hash(kind), ids[len(keys) * BLOCK :]):
            self._by_hash[key] = state
            keys.append(key)

    def remove(self, state: State) -> None:
        """Forget a state."""
        for key in self._hashes.pop(state, ()):
            if self._by_hash.get(key) is state:
                del self._by_hash[key]

    def find(self, kind: Hashable, ids: Sequence[int]) -> tuple[State, int] | None:
        """A state that begins as `ids` do, and for how many tokens; None when not for a block."""
        found = list(takewhile(lambda state: state is not None, map(self._by_hash.get, _hashes(hash(kind), ids))))
        if not found or found[-1] is None:
            return None
        shared = _common_prefix(found[-1].ids, ids)
        return (found[-1], shared) if shared >= BLOCK else None


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return sum(takewhile(bool, map(eq, a, b)))


def _hashes(key: int, ids: Sequence[int]) -> Iterator[int]:
    """A hash for each whole block, of it and all before it, which have the hash `key`."""
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        key = hash((key, *ids[start : start + BLOCK]))
        yield key
