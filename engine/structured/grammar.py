"""What the text of a completion must match, as a client says it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from thoughtbubbles.engine.errors import InvalidRequest

GrammarKind = Literal["json_schema", "regex", "grammar"]

MAX_LENGTHS: dict[GrammarKind, int] = {"json_schema": 1 << 16, "regex": 1 << 14, "grammar": 1 << 14}
"""Most characters of each kind."""


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """The texts that a completion may have. Raises `InvalidRequest` if `text` is too long."""

    kind: GrammarKind
    """`grammar` is Lark's notation as llguidance reads it, or EBNF with `::=` as llama.cpp writes it."""
    text: str
    """A JSON schema as JSON, a regular expression that matches the whole text, or a grammar."""
    param: str = "grammar"
    """What errors call it."""

    def __post_init__(self) -> None:
        if len(self.text) > (most := MAX_LENGTHS[self.kind]):
            message = f"{self.param} may have at most {most} characters, not {len(self.text)}"
            raise InvalidRequest(message, param=self.param, code="string_above_max_length")

    @classmethod
    def json(cls, schema: object, param: str = "grammar") -> "Grammar":
        """Return the grammar of JSON texts that are valid under a schema, a dictionary or a boolean."""
        if isinstance(schema, bool):  # llguidance reads neither: true is valid for all texts, false for none
            schema = {} if schema else {"enum": []}
        try:
            text = json.dumps(schema, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            message = f"{param} is not a JSON schema: {error}"
            raise InvalidRequest(message, param=param, code="invalid_grammar") from None
        return cls(kind="json_schema", text=text, param=param)

    @classmethod
    def choice(cls, choices: Sequence[str], param: str = "grammar") -> "Grammar":
        """Return the grammar of these texts alone."""
        return cls(kind="regex", text="|".join(map(_escaped, choices)), param=param)


def _escaped(text: str) -> str:
    """Return a regular expression that matches `text` alone."""
    return "".join(char if char.isascii() and char.isalnum() else rf"\x{{{ord(char):X}}}" for char in text)
