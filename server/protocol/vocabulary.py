"""Check clients' texts and token ids against the served vocabulary; raise `ApiError` 400 if it lacks one."""

import re
from collections.abc import Mapping, Sequence

from thoughtbubbles.model import Tokenizer
from thoughtbubbles.server.protocol.errors import ApiError, bad_request, quoted

DIGITS = re.compile(r"[0-9]{1,18}")


def encode(name: str, text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of a text in the field `name`."""
    try:
        return tokenizer.encode(text)
    except ValueError as error:  # the vocabulary lacks a byte
        raise bad_request(f"Invalid {name!r}: {error}.", "invalid_value", name) from None


def check_ids(name: str, ids: Sequence[int], tokenizer: Tokenizer) -> None:
    """Raise unless all `ids` in the field `name` are token ids."""
    size = tokenizer.vocab_size
    if not ids or (min(ids) >= 0 and max(ids) < size):  # a fifth of the time of the search
        return
    wrong = next((position for position, token_id in enumerate(ids) if not 0 <= token_id < size), None)
    if wrong is not None:
        raise _unknown(f"{name}[{wrong}]", str(ids[wrong]), tokenizer)


def token_id_keys(name: str, values: Mapping[str, float], tokenizer: Tokenizer) -> dict[int, float]:
    """Return the field `name` with its keys as numbers: JSON has them as strings."""
    for key in values:
        if not DIGITS.fullmatch(key) or int(key) >= tokenizer.vocab_size:
            raise _unknown(name, key, tokenizer)
    return {int(key): value for key, value in values.items()}


def _unknown(name: str, given: str, tokenizer: Tokenizer) -> ApiError:
    largest = tokenizer.vocab_size - 1
    message = f"Invalid {name!r}: {quoted(given)} is not a token id; the largest one is {largest}."
    return bad_request(message, "invalid_token_id", name)
