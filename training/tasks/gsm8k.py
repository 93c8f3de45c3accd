"""Evaluate GSM8K: grade-school problems whose answers end in a number (lm-evaluation-harness's task `gsm8k`).

- `exact_match_strict`: the number after `####` in the generated text is right.
- `exact_match_flexible`: the last number in the generated text is right.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thoughtbubbles.model import Checkpoint
from thoughtbubbles.model.selection import Rule
from thoughtbubbles.training.tasks.greedy import continue_greedily
from thoughtbubbles.training.tasks.records import read_records

STOPS = ("Question:", "</s>", "<|im_end|>")
MAX_TOKENS = 256
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")


@dataclass(frozen=True)
class Problem:
    """A line of the published `test.jsonl` or `train.jsonl`."""

    question: str
    answer: str
    """The solution; its last line is `#### ` and the number."""


def read_problems(path: Path) -> Iterator[Problem]:
    """Yield the problems of a file. Raise `ValueError` naming file and line if one is malformed."""
    return (Problem(each.get("question", str), each.get("answer", str)) for each in read_records(path))


def prompt(problem: Problem, shots: Sequence[Problem] = ()) -> str:
    """Return the harness's prompt: each of `shots` with its solution, then the question."""
    solved = "".join(f"{prompt(shot)} {shot.answer}\n\n" for shot in shots)
    return f"{solved}Question: {problem.question}\nAnswer:"


def solve(
    checkpoint: Checkpoint,
    problems: Sequence[Problem],
    shots: Sequence[Problem],
    *,
    rule: Rule,
    batch_size: int,
    ratio: float | None = None,
) -> list[str]:
    """Return the greedy continuation of each problem, cut before the first of `STOPS`.

    Long prompts are truncated on the left, so that the prompt and `MAX_TOKENS` tokens (at most half the block) fit the
    model's block.
    """
    tokenizer, block = checkpoint.tokenizer, checkpoint.model.config.block_size
    max_tokens = min(MAX_TOKENS, block // 2)
    texts = []
    for start in range(0, len(problems), batch_size):
        prompts = [prompt(each, shots) for each in problems[start : start + batch_size]]
        batch = [tokenizer.encode(text)[max_tokens - block :] for text in prompts]
        ends = _Ends(checkpoint)
        generated = continue_greedily(
            checkpoint.model, batch, max_tokens, ends, vocabulary=tokenizer.vocab_size, rule=rule, ratio=ratio
        )
        texts += [cut(tokenizer.decode(token for token in ids if token != tokenizer.end_of_text)) for ids in generated]
    return texts


def cut(text: str) -> str:
    """Return `text` up to the first of `STOPS`."""
    return text[: min((text.index(stop) for stop in STOPS if stop in text), default=len(text))]


def score(problems: Sequence[Problem], texts: Sequence[str]) -> dict[str, float]:
    """Return both metrics over all problems."""
    wanted = [_normal(problem.answer) for problem in problems]
    return {
        "exact_match_strict": _share(wanted, [_first(text) for text in texts]),
        "exact_match_flexible": _share(wanted, [_last(text) for text in texts]),
    }


@dataclass(frozen=True)
class _Ends:
    checkpoint: Checkpoint

    def __call__(self, ids: list[int]) -> bool:
        """Return whether the tokens end with end-of-text or their text has a stop string."""
        tokenizer = self.checkpoint.tokenizer
        return ids[-1] == tokenizer.end_of_text or any(stop in tokenizer.decode(ids[-32:]) for stop in STOPS)


def _share(wanted: Sequence[str], found: Sequence[str]) -> float:
    return float(np.mean([_normal(text) == right for text, right in zip(found, wanted, strict=True)]))


def _first(text: str) -> str:
    match = _STRICT.search(text)
    return match[1].strip() if match else "[invalid]"


def _last(text: str) -> str:
    found = _FLEXIBLE.findall(text)
    return next(filter(None, found[-1])).strip() if found else "[invalid]"


def _normal(text: str) -> str:
    for ignored in _IGNORED:
        text = re.sub(ignored, "", text)
    return text.lower()
