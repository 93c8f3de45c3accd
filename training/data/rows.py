"""Rows of question and answer sets and of conversations, written out as the text that a model is asked to continue.

The words are lm-evaluation-harness's for GSM8K and MMLU, and a line of `User:` or `Assistant:` for a turn. What a model
is given of them, as against what it is to say, is told beside the text. It ends at a colon, and what is to be said
begins with a space, where no token of GPT-2's kind reaches across: the ids of both are those of the whole.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Document(NamedTuple):
    """Text that is learned from, or read."""

    text: str
    """All of it."""
    given: tuple[tuple[int, int], ...] = ()
    """Where what is only given stands in it, questions and what introduces an answer: from and to, in characters."""

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """The text in pieces, and whether each is only given."""
        at = 0
        for start, end in self.given:
            yield self.text[at:start], False
            yield self.text[start:end], True
            at = end
        yield self.text[at:], False


def require_characters(document: Document, where: str) -> Document:
    """Return `document`. `ValueError` naming `where` for half of a surrogate pair in its text."""
    try:
        document.text.encode()
    except UnicodeEncodeError as error:
        half = ord(document.text[error.start])
        raise ValueError(f"{where}: the text has a lone surrogate, U+{half:04X}, at character {error.start}") from None
    return document


def plain_text(row: Row) -> Document:
    """A document as it was published."""
    return Document(str(row["text"]))


def conversation(row: Row) -> Document:
    """Turns, each after the name of its role, with an empty line between two.

    What the assistant says is not given, and neither is the name of who has the word after it, by which a reader knows
    that it has ended.
    """
    text, given, answered = "", [], False
    for turn in row["messages"]:
        name = ("\n\n" if text else "") + f"{turn['role'].capitalize()}:"
        words = f" {turn['content'].strip()}"
        start = len(text) + len(name) * answered
        answered = turn["role"] == "assistant"
        text += name + words
        given.append((start, len(text) - len(words) * answered))
    return Document(text, _joined(given))


def worked_answer(row: Row) -> Document:
    """A question, its steps, and after `####` the number that is asked for, as GSM8K writes it."""
    question = f"Question: {row['question'].strip()}\nAnswer:"
    return Document(f"{question} {' '.join(row['steps'])}\n#### {row['answer']}", ((0, len(question)),))


def multiple_choice(row: Row) -> Document:
    """A question, its choices under letters, and the letter of the right one."""
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
    question = f"{row['question'].strip()}\n{choices}\nAnswer:"
    return Document(f"{question} {'ABCD'[row['answer']]}", ((0, len(question)),))


def _joined(spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Without the empty ones; those that touch, as one."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        elif start < end:
            joined.append((start, end))
    return tuple(joined)
