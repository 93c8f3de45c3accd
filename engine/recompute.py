"""The rules that cannot be cached, `dynamic` and `fixed`: the whole sequence again for every token (SPEC.md).

Letters: B sequences, T tokens, S streams, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.prompt_report import Scores
from engine.scoring import pick, report
from model import Selection, Streams, Thoughtbubbles

SEQUENCES_AT_ONCE = 16
"""Prefixes of a prompt that are run together when it is scored."""


class Recompute:
    """Runs sequences from their first token, re-choosing every fork."""

    def __init__(self, model: Thoughtbubbles) -> None:
        self.model = model

    def last_logits(self, sequences: Sequence[Sequence[int]], selection: Selection) -> tuple[Tensor, list[list[int]]]:
        """Logits (B,V) float32 of each sequence's last token, and each sequence's streams per token."""
        device = self.model.transformer.wte.weight.device
        ids = pad_sequence([torch.tensor(s, device=device) for s in sequences], batch_first=True)
        lengths = torch.tensor([len(s) for s in sequences], device=device)
        streams, _ = self.model.streams(ids, selection, lengths)
        counts = [row[row < n].bincount().tolist() for row, n in zip(streams.token_index, lengths, strict=True)]
        return self.model.readout(_last_bubbles(streams, lengths))[0].float(), counts

    def score(self, prompt: Sequence[int], selection: Selection, top: int) -> Scores:
        """The log-probabilities of the prompt's second and later tokens, each from the prefix before it alone: what it
        would have been drawn from, since a later token may change what these rules chose before.
        """
        scores = Scores()
        for start in range(1, len(prompt), SEQUENCES_AT_ONCE):
            targets = prompt[start : start + SEQUENCES_AT_ONCE]
            prefixes = [prompt[: start + i] for i in range(len(targets))]
            scores.extend(report(self.last_logits(prefixes, selection)[0], targets, top))
        return scores


def _last_bubbles(streams: Streams, lengths: Tensor) -> Streams:
    """The streams of every row's last token, laid end to end as tokens 0 … B-1 of one row."""
    rows = torch.arange(len(lengths), device=lengths.device)[:, None]
    flat = torch.where(streams.token_index == lengths[:, None] - 1, rows, len(lengths)).flatten()
    one_row = Streams(streams.x.flatten(0, 1)[None], streams.score.flatten()[None], flat[None], len(lengths))
    return pick(one_row, torch.arange(len(lengths), device=lengths.device))
