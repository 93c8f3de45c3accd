"""The keys that a server accepts, of its API and of its administration (API.md §4)."""

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Self

from thoughtbubbles.server.reading import read_settings_file

SCHEME = b"bearer "
COMMENT = re.compile(r"(^|\s)#.*")
"""A comment in a file of keys. A # within a key starts none."""
EMPTY = "has no key: give one, or leave it out"
"""What is wrong with a source of keys that has none."""


@dataclass(frozen=True)
class ApiKeys:
    """Keys, kept as digests: no log, traceback or copy of the settings can contain one."""

    digests: frozenset[bytes] = field(default=frozenset(), repr=False)
    """SHA-256 of each key."""

    @classmethod
    def of(cls, keys: Iterable[str], source: str) -> Self:
        """Return the keys of `source`, without surrounding blanks. Raises `ValueError` if there are none."""
        digests = frozenset(sha256(key.strip().encode()).digest() for key in keys if key.strip())
        if not digests:
            raise ValueError(f"{source} {EMPTY}")
        return cls(digests)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Return the keys of a file, one a line; # starts a comment. Raises `ValueError` if it has none."""
        return cls.of((COMMENT.sub("", line) for line in read_settings_file(file).splitlines()), str(file))

    def __or__(self, other: Self) -> "ApiKeys":
        return ApiKeys(self.digests | other.digests)

    def admit(self, authorization: bytes) -> bool:
        """Return whether this Authorization header has one of the keys, or no key is needed.

        The time does not depend on which key it is, or how much of one is right: all digests are compared.
        """
        digest = digest_of(authorization)
        matches = [hmac.compare_digest(digest, each) for each in self.digests]
        return not matches or (authorization[: len(SCHEME)].lower() == SCHEME and any(matches))


def digest_of(authorization: bytes) -> bytes:
    """Return the SHA-256 of the key in this value of an Authorization header."""
    return sha256(authorization[len(SCHEME) :].strip()).digest()


NO_KEYS = ApiKeys()
"""Requests need no key."""
