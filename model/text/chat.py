"""A checkpoint's chat template: from a conversation to the token ids of the prompt that the model was tuned on.

The templates are Hugging Face's: Jinja, given `messages`, `add_generation_prompt`, `bos_token` and `eos_token`.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from thoughtbubbles.model.text.tokenizer import END_OF_TEXT, Tokenizer


class ChatTemplate:
    """One template, parsed. It runs in a sandbox, since a checkpoint is data from somebody else."""

    def __init__(self, source: str) -> None:
        """`ValueError` with the line when `source` is not a template."""
        self.source = source
        # End-of-text as a word that nobody else can write: what a user writes in its name stays text.
        self._mark = f"end-of-text-{secrets.token_hex(16)}"
        try:
            self._template = _environment().from_string(source.replace(END_OF_TEXT, self._mark))
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            raise ValueError(f"line {line}: {error}" if line else str(error)) from error

    def __reduce__(self) -> tuple[object, ...]:
        """To pickle it, for another process: what is parsed of it cannot be."""
        return ChatTemplate, (self.source,)

    def encode(self, messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> list[int]:
        """Token ids of `messages` (each with a `role` and a `content`) and the beginning of an answer to them.

        `ValueError` with the reason when the template does not take these messages, or a byte is not in the vocabulary.
        """
        first, *rest = map(tokenizer.encode, self._render(messages).split(self._mark))
        return first + [token_id for ids in rest for token_id in (tokenizer.end_of_text, *ids)]

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, bos_token=self._mark, eos_token=self._mark
            )
        except Exception as error:  # a template is a program, which may fail in any way
            raise ValueError(f"the chat template does not take these messages: {error}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    """What Hugging Face's templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _to_json  # Jinja's own writes < and > as HTML wants them
    return environment


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
