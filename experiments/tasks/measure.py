"""Measure a trained model of the study of tasks: errors by task, difficulty and fork ratio, and where it forks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.runner.plan import Run
from thoughtbubbles.model import Fork, Thoughtbubbles
from thoughtbubbles.model.selection import Rule
from thoughtbubbles.training.analysis.tokens import entropies
from thoughtbubbles.training.synthetic import DEEP, TASKS, WIDE, Segment, Task, segments

BATCH = 64
"""Windows that are measured at once."""
SERVED: Rule = "causal"
"""The rule of everything that is reported: no token's survivors depend on a later token."""
TRAINED, BEYOND = range(1, 9), range(9, 17)
HARDEST = 16
END_OF_TEXT = 256
TUNING_SEED, REPORT_SEED = 3, 4
OWN = "own"
"""The ratio of the model itself."""
DIFFICULTIES = {"": TRAINED, "-easy": range(1, 3), "-hard": range(5, 9), "-beyond": BEYOND}
"""Names of the ranges of n that errors are averaged over, behind the name of the tasks."""
GROUPS: Mapping[str, tuple[Task, ...]] = {"wide": WIDE, "deep": DEEP, **{task: (task,) for task in TASKS}}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How every model is measured."""

    windows: int
    """Windows of difficulties that were trained, and as many beyond."""
    tuning_windows: int
    """Windows that choose learning rates."""
    ratios: list[float]
    """Ratios of the dial."""


class Problems(NamedTuple):
    """Windows of whole segments, and where their answers are."""

    ids: Tensor
    """(windows, L+1)."""
    segments: list[Segment]
    window: NDArray[np.int64]
    """Of each segment, the window that it is in."""
    begin: NDArray[np.int64]
    """Of each segment, its first token."""

    @property
    def answers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last + 1 of the positions whose predictions are a segment's answer."""
        first = self.begin + np.array([each.answer for each in self.segments])
        return first - 1, self.begin + np.array([len(each.text) for each in self.segments]) - 2


class Found(NamedTuple):
    """What a model makes of a test, position by position: (windows, L)."""

    right: NDArray[np.float64]
    """Whether the next token has the highest logit: 1 or 0."""
    nats: NDArray[np.float64]
    entropy: NDArray[np.float64]
    forks: NDArray[np.float64]
    """Streams beside the original after the last fork layer; 0 in a model without."""


def make_test(seed: int, windows: int, length: int, difficulties: Sequence[int]) -> Problems:
    """Return `windows` windows of length + 1 tokens. Each begins with end of text; what ends behind it is left out."""
    drawn, ids = segments(seed, difficulties), np.full((windows, length + 1), ord("."), dtype=np.int64)
    kept: list[Segment] = []
    places: list[tuple[int, int]] = []
    for window in range(windows):
        ids[window, 0], at = END_OF_TEXT, 1
        while at <= length:
            each = next(drawn)
            text = np.frombuffer(each.text.encode(), dtype=np.uint8)[: length + 1 - at]
            ids[window, at : at + len(text)] = text
            if len(text) == len(each.text):
                kept.append(each)
                places.append((window, at))
            at += len(each.text)
    where = np.array(places, dtype=np.int64).reshape(-1, 2)
    return Problems(torch.from_numpy(ids), kept, where[:, 0], where[:, 1])


def measure_tuning(model: Thoughtbubbles, _data: Path, evaluation: Evaluation) -> dict[str, Any]:
    """Return the loss that chooses a learning rate, JSON-ready."""
    test = make_test(TUNING_SEED, evaluation.tuning_windows, model.config.block_size, TRAINED)
    return {"loss": answer_loss(test, read(model, test))}


def measure_final(model: Thoughtbubbles, _data: Path, evaluation: Evaluation, _run: Run) -> dict[str, Any]:
    """Return what is measured of a reported run, JSON-ready.

    `loss` is that of the answers to wide and deep tasks. `errors` has, by ratio and name, the share of answers with a
    wrong token; `accuracy`, by ratio and task, the share of right ones at each n from 1; `questions` says of how many.
    `inside` has means by task and n: forks of a token, and forks and entropy where an answer is predicted.
    """
    sizes = (evaluation.windows, model.config.block_size)
    tests = [make_test(REPORT_SEED + i, *sizes, of) for i, of in enumerate((TRAINED, BEYOND))]
    found = [read(model, test) for test in tests]
    ratios = evaluation.ratios if model.config.fork_layers else ()
    right = {OWN: _right(tests, found)}
    for ratio in ratios:
        right[f"{ratio:g}"] = _right(tests, [read(model, test, ratio) for test in tests])
    every = [each for test in tests for each in test.segments]
    cells = {ratio: _cells(every, values) for ratio, values in right.items()}
    return {
        "loss": answer_loss(tests[0], found[0]),
        "errors": {ratio: _errors(each) for ratio, each in cells.items()},
        "accuracy": {ratio: _by_task(each) for ratio, each in cells.items()},
        "questions": dict(zip(TASKS, _counts(every).astype(int).tolist(), strict=True)),
        "inside": _inside(tests, found, forks=bool(model.config.fork_layers)),
    }


def answer_loss(test: Problems, found: Found) -> float:
    """Return nats a token of the answers to wide and deep tasks, each task and difficulty counting alike."""
    cells = _cells(test.segments, _mean_within(found.nats, test, *test.answers))
    return round(float(np.nanmean(_part(cells, (*WIDE, *DEEP), TRAINED))), 6)


@torch.inference_mode()
def read(model: Thoughtbubbles, test: Problems, ratio: float | None = None) -> Found:
    """Return what `model` makes of each position of a test at a ratio (None: its own)."""
    device, parts = model.transformer.wte.weight.device, list[Tensor]()
    for start in range(0, len(test.ids), BATCH):
        ids = test.ids[start : start + BATCH].to(device)
        logits, forks = model(ids[:, :-1], rule=SERVED, ratio=ratio, return_forks=True)
        log_p, target = logits.float().log_softmax(-1), ids[:, 1:, None]
        counts = _fork_counts(forks, ids.shape[1] - 1) if forks else torch.zeros_like(ids[:, 1:])
        entropy = entropies(log_p.flatten(0, 1)).view(log_p.shape[:2])
        right, nats = (log_p.argmax(-1, keepdim=True) == target)[..., 0], -log_p.gather(-1, target)[..., 0]
        parts.append(torch.stack([right.float(), nats, entropy, counts.float()]).cpu())
    return Found(*torch.cat(parts, 1).double().numpy())


def _fork_counts(forks: Sequence[Fork], tokens: int) -> Tensor:
    """(B,T) streams beside each token's original after the last fork layer."""
    index = forks[-1].token_index.clamp(max=tokens)  # padding belongs to no token
    counts = torch.zeros(len(index), tokens + 1, dtype=torch.long, device=index.device)
    return counts.scatter_add(1, index, torch.ones_like(index))[:, :tokens] - 1


def _mean_within(
    values: NDArray[np.float64], test: Problems, first: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the mean of values (windows, L) from `first` to `end` of each segment."""
    sums = np.concatenate([np.zeros((len(values), 1)), values.cumsum(1)], axis=1)
    means: NDArray[np.float64] = (sums[test.window, end] - sums[test.window, first]) / (end - first)
    return means


def _right(tests: Sequence[Problems], found: Sequence[Found]) -> NDArray[np.float64]:
    """Return of the segments of all tests whether every token of the answer is right: 1 or 0."""
    shares = [_mean_within(each.right, test, *test.answers) for test, each in zip(tests, found, strict=True)]
    return (np.concatenate(shares) > 1 - 1e-6).astype(np.float64)


def _cells(every: Sequence[Segment], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the values of segments by task and n: (6, 16), NaN where there are none."""
    sums = np.bincount(_cell_of(every), weights=values, minlength=len(TASKS) * HARDEST).reshape(-1, HARDEST)
    counts = _counts(every)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _counts(every: Sequence[Segment]) -> NDArray[np.float64]:
    counts: NDArray[np.float64] = np.bincount(_cell_of(every), minlength=len(TASKS) * HARDEST).astype(np.float64)
    return counts.reshape(-1, HARDEST)


def _cell_of(every: Sequence[Segment]) -> NDArray[np.int64]:
    return np.array([TASKS.index(each.task) * HARDEST + each.n - 1 for each in every], dtype=np.int64)


def _part(cells: NDArray[np.float64], tasks: Sequence[Task], of: range) -> NDArray[np.float64]:
    """Return the cells of some tasks and difficulties."""
    return cells[[TASKS.index(task) for task in tasks], of.start - 1 : of.stop - 1]


def _errors(right: NDArray[np.float64]) -> dict[str, float | None]:
    """Return the share of wrong answers by group of tasks and range of n, each task and difficulty counting alike."""
    parts = {f"{group}{name}": _part(right, tasks, of) for group, tasks in GROUPS.items()
             for name, of in DIFFICULTIES.items()}  # fmt: skip
    return {name: None if np.isnan(part).all() else round(1 - float(np.nanmean(part)), 5)
            for name, part in parts.items()}  # fmt: skip


def _by_task(cells: NDArray[np.float64]) -> dict[str, list[float | None]]:
    rows = [[None if np.isnan(cell) else round(float(cell), 4) for cell in row] for row in cells]
    return dict(zip(TASKS, rows, strict=True))


def _inside(tests: Sequence[Problems], found: Sequence[Found], *, forks: bool) -> dict[str, Any]:
    every = [each for test in tests for each in test.segments]

    def means(name: str, *, answers: bool) -> dict[str, list[float | None]]:
        parts = []
        for test, each in zip(tests, found, strict=True):
            end = test.begin + np.array([len(one.text) for one in test.segments]) - 1
            places = test.answers if answers else (test.begin, end)
            parts.append(_mean_within(getattr(each, name), test, *places))
        return _by_task(_cells(every, np.concatenate(parts)))

    inside = {"answer_entropy": means("entropy", answers=True), "entropy": means("entropy", answers=False)}
    if forks:
        inside |= {"answer_forks": means("forks", answers=True), "forks": means("forks", answers=False)}
    return inside
