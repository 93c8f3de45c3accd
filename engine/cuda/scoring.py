"""Prompt log-probabilities on the device: those of `engine.scoring`, in bounded memory, which the host reads later.

Letters: W tokens that are followed by one to score, S streams, D model width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from thoughtbubbles.engine.cuda.kernels.forking import average
from thoughtbubbles.engine.cuda.kernels.logprobs import CANDIDATES, rank_rows, report_rows
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.engine.cuda.sampler import LOGPROB_WORDS
from thoughtbubbles.engine.prompt_report import Scores
from thoughtbubbles.engine.sampling_params import MAX_LOGPROBS
from thoughtbubbles.model import Thoughtbubbles

ROWS_AT_ONCE = 512
"""Tokens whose logits are in memory at once: V · 1 KB of them in bfloat16."""
TOKENS_AT_ONCE = 4096
"""Tokens of the vocabulary that a program of `rank_rows` looks at."""


@dataclass(frozen=True)
class Report:
    """Log-probabilities on their way to the host."""

    words: Tensor
    """(W,·) int32, laid out as `DeviceSampler.report`; on the host once `done` has happened."""
    sizes: Sequence[tuple[int, int | None]]
    """Of each chunk of the step: its part of W, and how many likeliest tokens it asks for, None for no scores."""
    done: torch.cuda.Event | None
    vocabulary: int
    """No more than so many tokens are ever reported."""

    def read(self) -> list[Scores | None]:
        """Wait, and return the scores of each chunk."""
        if self.done is not None:
            self.done.synchronize()
        ends = np.cumsum([size for size, _ in self.sizes])
        parts = zip(np.split(self.words.numpy(), ends[:-1]), self.sizes, strict=True)
        return [None if top is None else _scores(words, min(top, self.vocabulary)) for words, (_, top) in parts]


def _scores(words: NDArray[np.int32], top: int) -> Scores:
    """Return what some rows of a report say."""
    values = words.view(np.float32)
    return Scores.of(values[:, 0], words[:, 1 + MAX_LOGPROBS :][:, :top], values[:, 1 : 1 + top])


class PromptScorer:
    """Computes log-probabilities from streams, for some rows at a time."""

    def __init__(self, model: Thoughtbubbles, *, vocabulary: int, tokens: int) -> None:
        """For steps of at most so many tokens. Of the model's ids the first `vocabulary` are reported as likeliest."""
        weight = model.transformer.wte.weight
        self.vocabulary = vocabulary
        self._model = model
        self._blocks = triton.cdiv(len(weight), TOKENS_AT_ONCE)
        rows = min(tokens, ROWS_AT_ONCE)
        self._averaged = weight.new_empty((tokens, weight.shape[1]))
        self._logits = weight.new_empty((rows, len(weight)))
        self._sums = torch.empty((rows, self._blocks, 2), device=weight.device)
        self._candidates = torch.empty((rows, self._blocks, CANDIDATES), dtype=torch.int64, device=weight.device)
        self._report = torch.zeros((tokens, LOGPROB_WORDS), dtype=torch.int32, device=weight.device)

    def report(self, x: Tensor, rows: Rows, targets: Tensor, tops: Tensor) -> Tensor:
        """Launch the report (W,·) of tokens with streams x (S,D), which `rows` says, and the ids that follow them.

        The next call overwrites it.
        """
        config, transformer, averaged = self._model.config, self._model.transformer, self._averaged[: len(targets)]
        average(
            x=x, rows=rows, norm=transformer.ln_f, out=averaged, rightmost=config.averaging == "rightmost",
            norm_first=config.norm_before_averaging,
        )  # fmt: skip
        for parts in zip(*(each.split(ROWS_AT_ONCE) for each in (averaged, targets, tops, self._report)), strict=False):
            self._report_some(*parts)
        return self._report[: len(targets)]

    def _report_some(self, averaged: Tensor, targets: Tensor, tops: Tensor, report: Tensor) -> None:
        logits = self._logits[: len(averaged)]
        torch.mm(averaged, self._model.transformer.wte.weight.T, out=logits)
        rank_rows[(len(logits), self._blocks)](
            logits=logits, tops=tops, sums=self._sums, candidates=self._candidates, stride=logits.stride(0),
            vocabulary=self.vocabulary, model_vocabulary=logits.shape[1], BLOCK=TOKENS_AT_ONCE, CANDIDATES=CANDIDATES,
            num_warps=8,
        )  # fmt: skip
        report_rows[(len(logits),)](
            logits=logits, targets=targets, tops=tops, sums=self._sums, candidates=self._candidates,
            logprobs=report.view(torch.float32), ids=report, stride=logits.stride(0), blocks=self._blocks,
            BLOCKS=triton.next_power_of_2(self._blocks), MOST=MAX_LOGPROBS, CANDIDATES=CANDIDATES,
        )  # fmt: skip
