"""A checkpoint's chat template, which turns a conversation into prompt token ids.

Templates have Hugging Face's form: Jinja, given `messages`, `add_generation_prompt`, `bos_token` and `eos_token`. They
render as in transformers' `apply_chat_template`, without tools and documents.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.ext import Extension
from jinja2.nodes import Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from thoughtbubbles.model.text.tokenizer import END_OF_TEXT, Tokenizer


class ChatTemplate:
    """A parsed template. It runs in a sandbox, because a checkpoint may come from anybody."""

    def __init__(self, source: str) -> None:
        """Parse `source`. Raise `ValueError` with the line if it is not a template."""
        self.source = source
        # Stands for end-of-text and cannot be guessed: a user who writes <|endoftext|> gets plain text.
        self._mark = f"end-of-text-{secrets.token_hex(16)}"
        try:
            self._template = _environment().from_string(source.replace(END_OF_TEXT, self._mark))
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            raise ValueError(f"line {line}: {error}" if line else str(error)) from error

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the source, because a parsed template cannot be pickled."""
        return ChatTemplate, (self.source,)

    def encode(self, messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> list[int]:
        """Return the token ids of `messages` (each with `role` and `content`), up to where the answer starts.

        Raises `ValueError` if the template refuses these messages, or the vocabulary lacks a byte.
        """
        first, *rest = map(tokenizer.encode, self._render(messages).split(self._mark))
        return first + [token_id for ids in rest for token_id in (tokenizer.end_of_text, *ids)]

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, bos_token=self._mark, eos_token=self._mark,
                tools=None, documents=None,
            )  # fmt: skip
        except Exception as error:  # a template is a program: it can raise anything
            raise ValueError(f"the chat template does not take these messages: {error}") from error


class _Generation(Extension):
    """The block `{% generation %}`, which marks answers for training. Here it is its text."""

    tags = {"generation"}  # noqa: RUF012 (not in a ClassVar in Jinja)

    def parse(self, parser: Parser) -> Scope:
        """Return the block's statements; what they set stays inside."""
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return the environment that Hugging Face's templates expect."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    environment.filters["tojson"] = _to_json  # Jinja's own filter escapes < and > for HTML
    return environment


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
