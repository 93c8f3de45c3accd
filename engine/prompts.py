"""A prompt in any form that Python users have: text, token ids, or a tensor or an array of token ids."""

from collections.abc import Sequence
from typing import Any, Protocol

from thoughtbubbles.engine.errors import InvalidRequest
from thoughtbubbles.model import Tokenizer


class Array(Protocol):
    """A tensor of torch, an array of NumPy, or its like."""

    def tolist(self) -> Any:  # noqa: ANN401
        """Return its values as Python lists and numbers."""


Prompt = str | Sequence[int] | Array


def token_ids(prompt: Prompt, tokenizer: Tokenizer, name: str = "prompt") -> tuple[int, ...]:
    """Return the token ids of `prompt`; an empty text is the end-of-text token, which every text follows.

    Raises `InvalidRequest` with `name` for a prompt of another type.
    """
    if isinstance(prompt, str):
        return _encode(prompt, tokenizer, name)
    values = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if isinstance(values, bytes | bytearray) or not isinstance(values, Sequence):
        raise _wrong_type(name, type(prompt).__name__)
    kinds = set(map(type, values))
    if kinds - {int}:  # numbers of NumPy and tensors of one element are ids too
        values = [value.item() if hasattr(value, "item") else value for value in values]
        kinds = set(map(type, values))
    for kind in kinds - {int}:
        raise _wrong_type(name, f"{type(prompt).__name__} with an element of type {kind.__name__}")
    return tuple(values)


def batch_token_ids(prompts: Sequence[Prompt] | Array, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Return the `token_ids` of each prompt. Raise `InvalidRequest` naming the first of another type by its index."""
    values: Sequence[Prompt] = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise InvalidRequest(
            f"prompts is of type {type(prompts).__name__}; put a single prompt into a list",
            param="prompt",
            code="invalid_type",
        )
    return [token_ids(prompt, tokenizer, f"prompts[{i}]") for i, prompt in enumerate(values)]


def _encode(text: str, tokenizer: Tokenizer, name: str) -> tuple[int, ...]:
    try:
        return tuple(tokenizer.encode(text)) or (tokenizer.end_of_text,)
    except ValueError as error:
        raise InvalidRequest(f"{name} cannot be encoded: {error}", param="prompt") from error


def _wrong_type(name: str, found: str) -> InvalidRequest:
    return InvalidRequest(
        f"{name} is of type {found}; a prompt is a str, a sequence of int, or a one-dimensional tensor or array of int",
        param="prompt",
        code="invalid_type",
    )
