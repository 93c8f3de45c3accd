"""Summarise scores and the use of the budget by fork layer."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from thoughtbubbles.model import Fork, Selection

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class BudgetRow(NamedTuple):
    """The use of one fork layer's budget, summed over sequences."""

    layer: int
    tokens: int
    budget: int
    """Streams that the budget allows, at least the tokens and at most the candidates."""
    streams: int
    """Streams after the fork."""
    copies: int
    """New forks among them."""
    deleted: int
    """Streams before the fork that did not survive."""


class ScoreRow(NamedTuple):
    """The distribution of P = exp(c) of the streams after one fork layer."""

    layer: int
    streams: str
    """`originals` or `forks`."""
    number: int
    mean: float
    p05: float
    p25: float
    p50: float
    p75: float
    p95: float


def budget_rows(sequences: Iterable[list[Fork]], selection: Selection, tokens: Iterable[int]) -> list[BudgetRow]:
    """Return a row for each fork layer, from its forks in sequences (B = 1) of `tokens` tokens each."""
    rows: dict[int, BudgetRow] = {}
    for forks, length in zip(sequences, tokens, strict=True):
        streams = length
        for fork in forks:
            row = _budget_row(fork, selection, length, streams)
            streams = row.streams
            sums = zip(row[1:], rows.get(fork.layer, (0,) * len(row))[1:], strict=True)
            rows[fork.layer] = BudgetRow(fork.layer, *(a + b for a, b in sums))
    return list(rows.values())


def _budget_row(fork: Fork, selection: Selection, tokens: int, streams: int) -> BudgetRow:
    candidate = fork.candidate[0][_present(fork)]
    copies = int((candidate % 2 == 0).sum())
    return BudgetRow(
        fork.layer, tokens, selection.capacity(tokens, streams), len(candidate), copies,
        deleted=streams - (len(candidate) - copies),
    )  # fmt: skip


def score_rows(sequences: Iterable[list[Fork]]) -> list[ScoreRow]:
    """Return two rows for each fork layer: for originals and for forks."""
    found: dict[tuple[int, str], list[Tensor]] = {}
    for forks in sequences:
        for fork in forks:
            token = fork.token_index[0]
            original = _present(fork) & (token != torch.nn.functional.pad(token[1:], (0, 1), value=-1))
            p = fork.score[0].exp()
            found.setdefault((fork.layer, "originals"), []).append(p[original])
            found.setdefault((fork.layer, "forks"), []).append(p[_present(fork) & ~original])
    return [_score_row(layer, name, torch.cat(p)) for (layer, name), p in found.items()]


def _score_row(layer: int, name: str, p: Tensor) -> ScoreRow:
    values = p.double().cpu()
    if not len(values):
        return ScoreRow(layer, name, 0, *(float("nan"),) * 6)
    quantiles = values.quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    return ScoreRow(layer, name, len(values), float(values.mean()), *quantiles)


def _present(fork: Fork) -> Tensor:
    return fork.candidate[0] < fork.candidate_scores.shape[1]
