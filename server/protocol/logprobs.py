"""Tokens and their log-probabilities as OpenAI's four parallel arrays (API.md §2)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from thoughtbubbles.server.protocol.requests import Json

LEAST = -9999.0
"""Stands for -inf, which JSON does not have."""

Print = Callable[[int], str]
"""Writes a token id the way clients see it."""


class Token(NamedTuple):
    """One token of a choice, of its echoed prompt or generated. A tuple, since one is made for each that is told."""

    token_id: int
    """Its id."""
    logprob: float | None
    """Of the raw distribution; None where none was asked for, or nothing stands before it."""
    top_logprobs: Sequence[tuple[int, float]] | None
    """The most probable ids there and their log-probabilities; None with `logprob`."""
    fork_count: int | None
    """Its streams after the last fork layer; None where they were not asked for."""
    offset: int
    """Where its text begins in the returned text, in characters."""


def printed(token: bytes) -> str:
    r"""A token's text; a part of a character in the form `bytes:\xe2\x80`."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def logprobs_object(tokens: Sequence[Token], print_token: Print) -> Json:
    """The arrays, as long as `tokens`."""
    return {
        "tokens": [print_token(token.token_id) for token in tokens],
        "token_logprobs": [None if token.logprob is None else finite(token.logprob) for token in tokens],
        "top_logprobs": [_top(token, print_token) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def _top(token: Token, print_token: Print) -> dict[str, float] | None:
    """The token itself and the most probable ones; of two that print alike the higher stays."""
    if token.logprob is None or token.top_logprobs is None:
        return None
    top: dict[str, float] = {}
    # The chosen token comes first and equals keep what is there, so that its number is the very same object in both
    # arrays: lm-eval compares the two with `!=`.
    for token_id, logprob in ((token.token_id, token.logprob), *token.top_logprobs):
        name = print_token(token_id)
        if name not in top or logprob > top[name]:
            top[name] = logprob
    return {name: finite(logprob) for name, logprob in top.items()}


def finite(logprob: float) -> float:
    """`logprob` as JSON can say it."""
    return LEAST if logprob == -math.inf else logprob
