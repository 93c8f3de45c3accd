"""Collect the data of all four figures in one pass over the text."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from thoughtbubbles.model import Checkpoint, Fork, Selection
from thoughtbubbles.model.selection import Rule
from thoughtbubbles.training.analysis.attention import AttentionRow, AttentionShares
from thoughtbubbles.training.analysis.budget import BudgetRow, ScoreRow, budget_rows, score_rows
from thoughtbubbles.training.analysis.observed import observed_streams
from thoughtbubbles.training.analysis.tokens import TokenRow, fork_counts, token_rows
from thoughtbubbles.training.measures import Window


class Study(NamedTuple):
    """The rows of all figures but the fork map."""

    tokens: list[TokenRow]
    attention: list[AttentionRow]
    budget: list[BudgetRow]
    scores: list[ScoreRow]


class ForkMap(NamedTuple):
    """The forks of a text (paper, figure 7)."""

    tokens: list[str]
    forks: dict[int, list[int]]
    """For each fork layer, the number of forks of each token after it."""


@torch.inference_mode()
def study(
    checkpoint: Checkpoint, windows: Sequence[Window], selection: Selection, regular: Checkpoint | None = None
) -> Study:
    """Run the model on `windows`, one at a time, and a regular model for its entropy; return the rows."""
    rows: list[TokenRow] = []
    sequences: list[list[Fork]] = []
    shares = AttentionShares(0)
    for number, window in enumerate(windows):
        ids = _ids(checkpoint, window.ids.tolist())
        shares.tokens = len(ids) - 1
        streams, forks = observed_streams(checkpoint.model, ids[:-1], selection, shares.observe)
        sequences.append(forks)
        logits = checkpoint.model.readout(streams)[0]
        other = None if regular is None else _logits(regular, window, selection.rule)
        rows += token_rows(number, ids, checkpoint.tokenizer, forks=forks, logits=logits, regular=other)
    lengths = [len(window.ids) - 1 for window in windows]
    return Study(rows, shares.rows(), budget_rows(sequences, selection, lengths), score_rows(sequences))


@torch.inference_mode()
def fork_map(checkpoint: Checkpoint, token_ids: Sequence[int], selection: Selection) -> ForkMap:
    """Return the forks of one text after each fork layer."""
    _, forks = checkpoint.model.streams(_ids(checkpoint, token_ids)[None], selection)
    counts = {fork.layer: fork_counts(fork, len(token_ids)).tolist() for fork in forks}
    return ForkMap([checkpoint.tokenizer.decode([token]) for token in token_ids], counts)


def _logits(regular: Checkpoint, window: Window, rule: Rule) -> Tensor:
    logits: Tensor = regular.model(_ids(regular, window.ids[:-1].tolist())[None], rule=rule)[0]
    return logits


def _ids(checkpoint: Checkpoint, token_ids: Sequence[int]) -> Tensor:
    return torch.tensor(token_ids, device=checkpoint.model.transformer.wte.weight.device)
