"""Turn rows of question and answer sets, and conversations, into documents with prompts and answers.

GSM8K and MMLU are worded as in lm-evaluation-harness; a turn of a conversation starts with `User:` or `Assistant:`. A
prompt ends with a colon and an answer starts with a space. No token of a GPT-2-like vocabulary spans the two, so
encoding them separately gives the ids of the whole.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Document(NamedTuple):
    """A text to train on, with its prompts marked."""

    text: str
    prompts: tuple[tuple[int, int], ...] = ()
    """Start and end, in characters, of each prompt: questions, and the words that introduce an answer."""

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """Yield the text in pieces, and whether each is a prompt."""
        at = 0
        for start, end in self.prompts:
            yield self.text[at:start], False
            yield self.text[start:end], True
            at = end
        yield self.text[at:], False


def require_characters(document: Document, where: str) -> Document:
    """Return `document`. Raise `ValueError` naming `where` if its text has half of a surrogate pair."""
    try:
        document.text.encode()
    except UnicodeEncodeError as error:
        half = ord(document.text[error.start])
        raise ValueError(f"{where}: the text has a lone surrogate, U+{half:04X}, at character {error.start}") from None
    return document


def plain_text(row: Row) -> Document:
    """Return the `text` of a row as a document."""
    return Document(str(row["text"]))


def conversation(row: Row) -> Document:
    """Return the turns as a document, each after the name of its role, with an empty line between turns.

    Everything is a prompt except what the assistant says and the role name after it, which marks the answer's end.
    """
    text, prompts, answered = "", [], False
    for turn in row["messages"]:
        name = ("\n\n" if text else "") + f"{turn['role'].capitalize()}:"
        words = f" {turn['content'].strip()}"
        start = len(text) + len(name) * answered
        answered = turn["role"] == "assistant"
        text += name + words
        prompts.append((start, len(text) - len(words) * answered))
    return Document(text, _joined(prompts))


def worked_answer(row: Row) -> Document:
    """Return a question, its steps, and the result after `####`, as a document in GSM8K's form."""
    question = f"Question: {row['question'].strip()}\nAnswer:"
    return Document(f"{question} {' '.join(row['steps'])}\n#### {row['answer']}", ((0, len(question)),))


def multiple_choice(row: Row) -> Document:
    """Return a question, its lettered choices, and the letter of the right one, as a document."""
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
    question = f"{row['question'].strip()}\n{choices}\nAnswer:"
    return Document(f"{question} {'ABCD'[row['answer']]}", ((0, len(question)),))


def _joined(spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return `spans` without empty ones, and with adjacent ones merged."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        elif start < end:
            joined.append((start, end))
    return tuple(joined)
