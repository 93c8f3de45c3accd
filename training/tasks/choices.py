"""Answer multiple-choice questions by likelihood: the most likely continuation is the model's answer.

The formulas are lm-evaluation-harness's; ll is the summed log-likelihood of the delimiter and a choice after the
context:

- `acc`: argmax ll is right; for a single continuation (LAMBADA): each of its tokens is the most likely one.
- `acc_norm`: argmax ll / characters of the choice, the delimiter not counted.
- `acc_bytes`: argmax ll / UTF-8 bytes of the choice.
- `perplexity`: exp of minus the mean ll of the right continuation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from thoughtbubbles.model import Checkpoint, Tokenizer
from thoughtbubbles.model.selection import Rule
from thoughtbubbles.training.measures import Likelihood, Window, likelihoods, perplexity
from thoughtbubbles.training.tasks.formats import Question

_UNITS: dict[str, Callable[[str], int]] = {
    "acc": lambda _: 1,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}


@dataclass(frozen=True)
class Answer:
    """The model's likelihoods for one question."""

    question: Question
    likelihoods: tuple[Likelihood, ...]
    """One for each choice."""

    def metric(self, name: str) -> float:
        """Return 1 if right, else 0, for `acc`, `acc_norm` or `acc_bytes`; for `perplexity` the right choice's ll."""
        if name == "perplexity":
            return -self.likelihoods[self.question.gold].nats
        if len(self.likelihoods) == 1:
            return float(self.likelihoods[0].greedy)
        per_unit = [-each.nats / size for each, size in zip(self.likelihoods, self._sizes(name), strict=True)]
        return float(int(np.argmax(per_unit)) == self.question.gold)

    def _sizes(self, name: str) -> list[int]:
        return [max(1, _UNITS[name](choice)) for choice in self.question.choices]


def answer(
    checkpoint: Checkpoint, questions: Sequence[Question], rule: Rule, batch_size: int, ratio: float | None = None
) -> list[Answer]:
    """Return the likelihoods of every choice of every question, each by one forward pass over context and choice."""
    windows = [
        _window(checkpoint, question.context, question.delimiter + choice)
        for question in questions
        for choice in question.choices
    ]
    scored = iter(likelihoods(checkpoint.model, windows, rule, batch_size, ratio, progress=True))
    return [Answer(question, tuple(next(scored) for _ in question.choices)) for question in questions]


def summarise(answers: Sequence[Answer], metrics: Sequence[str]) -> dict[str, float]:
    """Return each metric over `answers`, and the standard error of each accuracy (from the sample deviation)."""
    summary = {}
    for name in metrics:
        values = np.array([each.metric(name) for each in answers])
        if name == "perplexity":
            summary[name] = perplexity(float(-values.mean()))
        else:
            summary[name] = float(values.mean())
            summary[f"{name}_stderr"] = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    return summary


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the token ids of context and continuation, split as lm-evaluation-harness does.

    Spaces at the end of the context belong to the continuation. An empty context becomes end-of-text.
    """
    stripped = context.rstrip()
    before = tokenizer.encode(stripped)
    whole = tokenizer.encode(context + continuation)
    return before or [tokenizer.end_of_text], whole[len(before) :]


def _window(checkpoint: Checkpoint, context: str, continuation: str) -> Window:
    """Return a window of the continuation after as much of the context as fits the model's block."""
    before, after = encode_pair(checkpoint.tokenizer, context, continuation)
    ids = np.array([*before, *after][-checkpoint.model.config.block_size - 1 :], dtype=np.int64)
    return Window(ids, min(len(after), len(ids) - 1))
