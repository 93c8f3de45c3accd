"""Tokens and their log-probabilities as OpenAI's four parallel arrays (API.md §2)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from thoughtbubbles.engine import ForkScores
from thoughtbubbles.server.protocol.requests import Json

MIN_LOGPROB = -9999.0
"""Written for -inf, which JSON does not have."""

Print = Callable[[int], str]
"""Returns the text of a token id as clients see it."""


class Token(NamedTuple):
    """One token of a choice, echoed or generated. A tuple, because many are made."""

    token_id: int
    """The token's id."""
    logprob: float | None
    """In the raw distribution; None if not requested, or for the first token of a prompt."""
    top_logprobs: Sequence[tuple[int, float]] | None
    """The most probable ids at its position and their log-probabilities; None if `logprob` is."""
    fork_count: int | None
    """Its streams after the last fork layer; None if not requested."""
    fork_scores: ForkScores | None
    """P of its streams after each fork layer; None if not requested."""
    offset: int
    """Where its text starts in the returned text, in characters."""


def printed(token: bytes) -> str:
    r"""Return a token's text; for a part of a character the form `bytes:\xe2\x80`."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def logprobs_object(tokens: Sequence[Token], print_token: Print) -> Json:
    """Return the arrays, each as long as `tokens`."""
    return {
        "tokens": [print_token(token.token_id) for token in tokens],
        "token_logprobs": [None if token.logprob is None else finite(token.logprob) for token in tokens],
        "top_logprobs": [_top(token, print_token) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def _top(token: Token, print_token: Print) -> dict[str, float] | None:
    """Return log-probabilities by text, of the token and the most probable ones; of equal texts the higher."""
    if token.logprob is None or token.top_logprobs is None:
        return None
    top: dict[str, float] = {}
    # The chosen token comes first and an equal one does not replace it, so that both arrays have the same object:
    # lm-eval compares the two with `!=`.
    for token_id, logprob in ((token.token_id, token.logprob), *token.top_logprobs):
        name = print_token(token_id)
        if name not in top or logprob > top[name]:
            top[name] = logprob
    return {name: finite(logprob) for name, logprob in top.items()}


def finite(logprob: float) -> float:
    """Return `logprob` as JSON can represent it."""
    return MIN_LOGPROB if logprob == -math.inf else logprob
