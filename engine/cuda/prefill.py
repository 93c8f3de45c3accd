"""One prefill step that the device runs alone: new tokens of some requests, from their embeddings to the next tokens.

A step serves any prompts with at most so many tokens together, of at most so many requests.

Letters: B batch slots, T tokens that there may be, D model width, G segments.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cache.ledger import Numbers
from thoughtbubbles.engine.cuda.kernels.prefill import Bubbles, Candidates, embed, fit, gather, rank, score
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.engine.cuda.lanes import PrefillInputs
from thoughtbubbles.engine.cuda.sampler import LOGPROB_WORDS, DeviceSampler
from thoughtbubbles.engine.cuda.scoring import PromptScorer, Report
from thoughtbubbles.engine.cuda.step import Step, Workspace, packed_rows
from thoughtbubbles.engine.transfer import to_host
from thoughtbubbles.model import ForkingBlock, Thoughtbubbles


class PrefillStep(Step):
    """The prefill step for a number of tokens."""

    normed = False

    def __init__(
        self, model: Thoughtbubbles, cache: ForkCache, work: Workspace, sampler: DeviceSampler | None, *, tokens: int,
        batch_size: int,
    ) -> None:  # fmt: skip
        """For at most `tokens` tokens of at most `batch_size` requests. `sampler` draws for their lanes.

        Without one, the step computes no logits.
        """
        super().__init__(model, cache, work, sampler, batch_size=batch_size)
        device, segments = work.x.device, len(cache.segments)
        self.tokens = tokens
        self.rows = np.array([packed_rows(model.config, tokens, i) for i in range(segments)])
        """(G,) the most streams of all requests in each segment."""
        sizes = {"B": batch_size, "T": tokens, "G": segments, "P": cache.ledger.table.shape[1], "ONE": 1}
        host = PrefillInputs.zeros(torch.device("cpu"), **sizes)
        self._host_memory, self._host = host.memory, host.numpy() | {"streams": host.streams.numpy().T}
        self._num_used = 0
        """Words of it that the next run reads."""
        self._inputs = PrefillInputs.zeros(device, **sizes)
        self._output = torch.zeros(segments * (2 + tokens), dtype=torch.int32, device=device)
        tally, counts = self._output.split([2 * segments, segments * tokens])
        self._tally = tally.view(segments, 2)
        self._token = torch.zeros(batch_size, dtype=torch.int32, device=device)
        self._bubbles = [Bubbles(torch.zeros_like(n), n) for n in counts.view(segments, tokens)]
        self._bubbles[0].start.copy_(torch.arange(tokens, device=device))
        self._bubbles[0].count.fill_(1)
        self._make_rows(longest=min(tokens, cache.ledger.ids.shape[1]))
        self._candidates = [Candidates.empty(tokens, 1 << i, device) for i in range(segments)]
        self._host_output, self._host_token = (torch.empty_like(each, device="cpu", pin_memory=work.x.is_cuda)
                                               for each in (self._output, self._token))  # fmt: skip
        self.logprobs = torch.empty((batch_size, LOGPROB_WORDS), dtype=torch.int32, pin_memory=work.x.is_cuda)
        """On the host after `wait`: the first rows of `DeviceSampler.report`, as many as `draw` was to copy."""
        self._forked, self._done = (torch.cuda.Event() if work.x.is_cuda else None for _ in range(2))

    def _make_rows(self, *, longest: int) -> None:
        inputs = self._inputs
        slot = torch.arange(self.batch_size, dtype=torch.int32, device=inputs.memory.device)
        first = {"start": inputs.first, "count": inputs.count, "length": inputs.length, "live": inputs.live}
        self._rows = [
            self._rows_of(pages, slot, inputs.table, tokens=self.tokens, rows=rows, most=min(rows, longest << i),
                          **({} if i else first))
            for i, (pages, rows) in enumerate(zip(self._cache.segments, self.rows.tolist(), strict=True))
        ]  # fmt: skip
        self._ends = replace(self._rows[-1], start=torch.zeros_like(slot), count=torch.zeros_like(slot))
        """The streams of each request's last token."""

    def write(self, **columns: Sequence[int] | NDArray[Any]) -> None:
        """Set the beginnings of columns of `PrefillInputs` for the next run; what follows in them has no meaning.

        `streams` is (B,G) here. The last run has ended, and `wait` has returned.
        """
        self._host["count"].fill(0)
        self._host["lane"].fill(-1)
        for name, values in columns.items():
            self._host[name][: len(values)] = values
        self._num_used = len(self._host_memory) - self._host["table"][len(columns["table"]) :].size

    def run(self) -> None:
        """Launch the step up to the logits. `draw` follows."""
        self._inputs.memory[: self._num_used].copy_(self._host_memory[: self._num_used], non_blocking=True)
        self._replay("begin")
        self._host_output.copy_(self._output, non_blocking=True)
        if self._forked:
            self._forked.record()
        self._replay("end")

    def draw(self, *, plain: bool, scored: int = 0) -> None:
        """Launch the draw, and a copy of the log-probabilities drawn in the first `scored` batch slots.

        `plain` as in `DeviceSampler.draw`.
        """
        if self._sampler:
            self._replay("plain" if plain else "any")
        self._host_token.copy_(self._token, non_blocking=True)
        if self._sampler and scored:
            self.logprobs[:scored].copy_(self._sampler.report[:scored], non_blocking=True)
        if self._done:
            self._done.record()

    @torch.inference_mode()
    def report(self, scorer: PromptScorer, sizes: Sequence[tuple[int, int | None]]) -> Report:
        """Launch the scoring of prompts, after `draw`; `sizes` as in `Report`."""
        inputs, bubbles, wanted = self._inputs, self._bubbles[-1], sum(size for size, _ in sizes)
        tokens = inputs.scored[:wanted]
        rows = replace(self._rows[-1], start=bubbles.start.index_select(0, tokens),
                       count=bubbles.count.index_select(0, tokens))  # fmt: skip
        report = scorer.report(self._x(len(self._rows) - 1), rows, inputs.target[:wanted], inputs.top[:wanted])
        words, done = to_host(report), None
        if report.is_cuda:
            done = torch.cuda.Event()
            done.record()
        return Report(words, sizes, done, scorer.vocabulary)

    def wait_for_streams(self) -> tuple[Numbers, Numbers]:
        """Wait until all streams are known, before the layers of the last segment, and return what the step reports.

        These are (G,2) fork copies that survived and streams that were deleted on the way into each segment, and (G,T)
        the streams of each token in each segment, both valid until the next run.
        """
        if self._forked:
            self._forked.synchronize()
        output, segments = self._host_output.numpy(), len(self._rows)
        return output[: 2 * segments].reshape(segments, 2), output[2 * segments :].reshape(segments, -1)

    def wait(self) -> Numbers:
        """Wait for the step, and return (B,) the token drawn for each request, valid until the next run."""
        if self._done:
            self._done.synchronize()
        tokens: Numbers = self._host_token.numpy()
        return tokens

    def streams(self, live: int) -> tuple[Tensor, Tensor]:
        """Return `live` streams (S,D) after the last layer, and their scores (S,), both valid until the next run."""
        return self._x(len(self._rows) - 1)[:live], self._rows[-1].score[:live]

    @property
    def _launches(self) -> Mapping[str, Callable[[], None]]:
        forward: dict[str, Callable[[], None]] = {"begin": self._begin, "end": self._end}
        if not self._sampler:
            return forward
        return forward | {"plain": partial(self._draw, plain=True), "any": partial(self._draw, plain=False)}

    def _clear(self) -> None:
        self._inputs.memory.zero_()
        self._inputs.lane.fill_(-1)

    def _embed(self) -> None:
        self._tally.zero_()
        embed(
            embedding=self._model.transformer.wte.weight, ids=self._inputs.ids, request=self._inputs.request,
            position=self._inputs.position, rows=self._rows[0], frequencies=self._frequencies, x=self._x(0),
        )  # fmt: skip

    def _fork(self, block: ForkingBlock, into: int) -> None:
        inputs, tokens, rows, cache = self._inputs, self._rows[0], self._rows[into - 1], self._cache.segments[into - 1]
        x, before, after = self._x(into - 1), self._bubbles[into - 1], self._bubbles[into]
        candidates = self._candidates[into]
        score(block=block, x=x, bubbles=before, tokens=tokens, rows=rows, cached=cache.scores, into=candidates)
        rank(
            bubbles=before, request=inputs.request, tokens=tokens, rows=rows, cached=cache.scores,
            fork_budget=inputs.fork_budget, into=candidates,
        )  # fmt: skip
        fit(
            tokens=tokens, candidates=candidates, fork_budget=inputs.fork_budget, streams=inputs.streams[into],
            after=after, into=self._rows[into],
        )  # fmt: skip
        gather(
            block=block, x=x, before=before, candidates=candidates, after=after, tokens=tokens, request=inputs.request,
            position=inputs.position, frequencies=self._frequencies, out=self._x(into), into=self._rows[into],
            tally=self._tally[into],
        )  # fmt: skip

    def _last_rows(self) -> Rows:
        torch.index_select(self._bubbles[-1].start, 0, self._inputs.last, out=self._ends.start)
        torch.index_select(self._bubbles[-1].count, 0, self._inputs.last, out=self._ends.count)
        return self._ends

    @property
    def _slots(self) -> tuple[Tensor, Tensor]:
        return self._inputs.lane, self._token
