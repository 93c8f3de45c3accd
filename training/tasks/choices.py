"""Questions answered by likelihood: which continuation the model finds likeliest.

lm-evaluation-harness's formulas, with ll the summed log-likelihood of the delimiter and a choice after the context:

- `acc`: argmax ll is right; of a single continuation (LAMBADA): each of its tokens is the likeliest.
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
from thoughtbubbles.training.measures import Likelihood, Window, likelihoods
from thoughtbubbles.training.tasks.formats import Question

_UNITS: dict[str, Callable[[str], int]] = {
    "acc": lambda _: 1,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}


@dataclass(frozen=True)
class Answer:
    """What the model made of one question."""

    question: Question
    likelihoods: tuple[Likelihood, ...]
    """One a choice."""

    def metric(self, name: str) -> float:
        """`acc`, `acc_norm` or `acc_bytes`: 1 where it is right, else 0; `perplexity`: ll of the right choice."""
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
    """Score every choice of every question, one pass each over context and choice."""
    windows = [
        _window(checkpoint, question.context, question.delimiter + choice)
        for question in questions
        for choice in question.choices
    ]
    scored = iter(likelihoods(checkpoint.model, windows, rule, batch_size, ratio, progress=True))
    return [Answer(question, tuple(next(scored) for _ in question.choices)) for question in questions]


def summarise(answers: Sequence[Answer], metrics: Sequence[str]) -> dict[str, float]:
    """Each metric over all of `answers`, and of accuracies their standard error (of the mean, sample deviation)."""
    summary = {}
    for name in metrics:
        values = np.array([each.metric(name) for each in answers])
        if name == "perplexity":
            summary[name] = math.exp(-values.mean())
        else:
            summary[name] = float(values.mean())
            summary[f"{name}_stderr"] = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    return summary


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of both, as lm-evaluation-harness parts them: spaces that end the context belong to the continuation.

    An empty context is end-of-text.
    """
    stripped = context.rstrip()
    before = tokenizer.encode(stripped)
    whole = tokenizer.encode(context + continuation)
    return before or [tokenizer.end_of_text], whole[len(before) :]


def _window(checkpoint: Checkpoint, context: str, continuation: str) -> Window:
    """The continuation's tokens after as much of the context as the model's block holds."""
    before, after = encode_pair(checkpoint.tokenizer, context, continuation)
    ids = np.array([*before, *after][-checkpoint.model.config.block_size - 1 :], dtype=np.int64)
    return Window(ids, min(len(after), len(ids) - 1))
