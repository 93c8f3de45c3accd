"""The API keys that clients may show (API.md §4)."""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Self

from thoughtbubbles.server.reading import read_settings_file

SCHEME = b"bearer "


@dataclass(frozen=True)
class ApiKeys:
    """Keys, kept as digests: no log, traceback or copy of the settings can hold one."""

    digests: frozenset[bytes] = field(default=frozenset(), repr=False)
    """SHA-256 of each; none means that nobody needs a key."""

    @classmethod
    def of(cls, keys: Iterable[str], source: str) -> Self:
        """Of `keys`, surrounded by blanks or not. `ValueError` when `source`, which was to have some, has none."""
        digests = frozenset(sha256(key.strip().encode()).digest() for key in keys if key.strip())
        if not digests:
            raise ValueError(f"{source} has no API key: without one nobody would need a key")
        return cls(digests)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Of a file with one key a line; lines that begin with # are comments. `OSError`, `ValueError` without keys."""
        lines = read_settings_file(file).splitlines()
        return cls.of((line for line in lines if not line.startswith("#")), str(file))

    def __or__(self, other: Self) -> "ApiKeys":
        return ApiKeys(self.digests | other.digests)

    def admit(self, authorization: bytes) -> bool:
        """Whether this value of an Authorization header shows one of the keys, or none is needed.

        It takes the same time whichever key it is and however much of one is right: digests are compared, and all of
        them.
        """
        digest = digest_of(authorization)
        matches = [hmac.compare_digest(digest, each) for each in self.digests]
        return not matches or (authorization[: len(SCHEME)].lower() == SCHEME and any(matches))


def digest_of(authorization: bytes) -> bytes:
    """Return the SHA-256 of the key in this value of an Authorization header."""
    return sha256(authorization[len(SCHEME) :].strip()).digest()


NO_KEYS = ApiKeys()
"""Everybody may ask."""
