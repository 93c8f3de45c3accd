"""Prefill that the device runs alone: new tokens of some requests, from their vectors to the logits that follow.

As in `engine.cuda.decode`, what survives each fork is known to the device alone until the end, and the whole is one
CUDA graph: pages are taken beforehand for all that may survive, and every kernel leaves out what does not live. So a
step serves any prompts that have no more tokens together than it has room for, and no more requests.

Letters: R requests that there may be, T tokens that there may be, M streams that there may be, D model width,
V vocabulary, G segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cache.ledger import Numbers
from thoughtbubbles.engine.cache.pages import Segment, SegmentPages
from thoughtbubbles.engine.cuda.inputs import Inputs
from thoughtbubbles.engine.cuda.kernels.forking import average
from thoughtbubbles.engine.cuda.kernels.prefill import Bubbles, Candidates, begin, fit, rank, spread, weigh
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.engine.cuda.kernels.sampling import TOKENS_AT_ONCE, draw
from thoughtbubbles.engine.cuda.kernels.tiles import MOST_PARTS, MOST_ROWS_OF_PARTS
from thoughtbubbles.engine.cuda.layers import Scratch, run_layers
from thoughtbubbles.model import ForkingBlock, Thoughtbubbles
from thoughtbubbles.model.rotary import BASE


@dataclass(frozen=True)
class Workspace:
    """What steps of every size write over: one of them runs at a time."""

    x: Tensor
    """(2,M,D): neighbouring segments never share memory."""
    scratch: Scratch

    @classmethod
    def empty(cls, model: Thoughtbubbles, sizes: Sequence[int], places: int) -> Self:
        """For steps of so many tokens, of requests in so many places; inputs are shared out in the small ones alone."""
        weight, width, forks = model.transformer.wte.weight, model.config.n_embd, len(model.config.fork_layers)
        rows = max(sizes) << forks
        sharing = max((n for n in sizes if n <= MOST_ROWS_OF_PARTS), default=0) << forks
        scratch = Scratch.zeros(model.config, weight, places=places, rows=rows, usual=rows)
        sums = torch.empty(MOST_PARTS * sharing * width, device=weight.device)
        return cls(weight.new_zeros((2, rows, width)), replace(scratch, sums=sums))


class PrefillStep:
    """The step for so many tokens: `run` launches it, or once it is captured replays it."""

    def __init__(
        self, model: Thoughtbubbles, cache: ForkCache, work: Workspace, *, tokens: int, places: int, vocabulary: int
    ) -> None:
        """For at most so many tokens, of requests in at most so many places, that draw from the first `vocabulary`."""
        weight, segments = model.transformer.wte.weight, len(cache.segments)
        self.tokens, self._model, self._cache, self._work = tokens, model, cache, work
        pages = cache.ledger.table.shape[1]
        told = Inputs.zeros(tokens, places, segments, pages, torch.device("cpu"))
        self._memory, self._told = told.memory, told.numpy()
        self._inputs = Inputs.zeros(tokens, places, segments, pages, weight.device)
        self._report = torch.zeros(2 * segments + places + segments * tokens, dtype=torch.int32, device=weight.device)
        tally, self._token, counts = self._report.split([2 * segments, places, segments * tokens])
        self._tally = tally.view(segments, 2)
        self._bubbles = [Bubbles(torch.zeros_like(n), n) for n in counts.view(segments, tokens)]
        self._bubbles[0].start.copy_(torch.arange(tokens, device=weight.device))
        self._bubbles[0].count.fill_(1)
        self.logits = weight.new_empty((places, model.config.vocab_size))
        """(R,V) of the token that follows each request's last."""
        self._read = weight.new_empty((places, model.config.n_embd))
        blocks = -(-vocabulary // TOKENS_AT_ONCE)
        self._vocabulary = vocabulary
        self._best = torch.empty((places, blocks), device=weight.device)
        self._best_at = torch.empty((places, blocks), dtype=torch.int32, device=weight.device)
        exponent = torch.arange(0, model.config.head_width, 2, device=weight.device, dtype=torch.float32)
        self._frequencies = BASE ** -(exponent / model.config.head_width)
        lane = torch.arange(places, dtype=torch.int32, device=weight.device)
        self._rows = [self._rows_of(pages, lane) for pages in cache.segments]
        self._x = [work.x[i % 2, : len(rows.slot)] for i, rows in enumerate(self._rows)]
        self._candidates = [Candidates.empty(tokens, 1 << i, weight.device) for i in range(segments)]
        self._ends = replace(self._rows[-1], start=torch.zeros_like(lane), count=torch.zeros_like(lane))
        """The streams of each request's last token."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._reported = torch.empty_like(self._report, device="cpu", pin_memory=weight.is_cuda)
        """On the host, once it has landed."""
        self._landed = torch.cuda.Event() if weight.is_cuda else None

    @torch.inference_mode()
    def capture(self, stream: torch.cuda.Stream) -> None:
        """Record the step on a stream of its device."""
        self.prepare()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._launch()
        self._graph = graph

    @torch.inference_mode()
    def prepare(self) -> None:
        """Compile what is new, with no tokens."""
        self._inputs.memory.zero_()
        self._launch()

    def tell(self, **facts: ArrayLike) -> None:
        """Begin fields of `Inputs` with these values; what stands after them is of no meaning.

        What was told before has been computed, and its report read.
        """
        self._told["count"].fill(0)
        for name, values in facts.items():
            told = np.asarray(values)
            self._told[name][tuple(map(slice, told.shape))] = told

    @torch.inference_mode()
    def run(self) -> None:
        """Compute what the step was told."""
        self._inputs.memory.copy_(self._memory, non_blocking=True)
        if self._graph:
            self._graph.replay()
        else:
            self._launch()
        self._reported.copy_(self._report, non_blocking=True)
        if self._landed:
            self._landed.record()

    def report(self) -> tuple[Numbers, Numbers, Numbers]:
        """Wait for it: fork copies that survived and streams deleted on the way into each segment (G,2), a draw for
        each request (R,), and the streams that each token has in each segment (G,T); all until it runs again.
        """
        if self._landed:
            self._landed.synchronize()
        report, segments = self._reported.numpy(), len(self._rows)
        drawn, counts = 2 * segments, 2 * segments + len(self._token)
        return report[:drawn].reshape(segments, 2), report[drawn:counts], report[counts:].reshape(segments, -1)

    def streams(self, live: int) -> tuple[Tensor, Tensor]:
        """The first so many streams (S,D) after the last layer, and their scores (S,), until the next step."""
        return self._x[-1][:live], self._rows[-1].score[:live]

    def _launch(self) -> None:
        inputs, tokens = self._inputs, self._rows[0]
        self._tally.zero_()
        begin(self._model.transformer.wte.weight, inputs.ids, inputs.request, inputs.position, tokens,
              self._frequencies, self._x[0])  # fmt: skip
        for pages, rows, x in zip(self._cache.segments, self._rows, self._x, strict=True):
            if pages.segment.index:
                self._fork(pages.segment)
            run_layers(self._model, pages, x, rows, self._work.scratch.of(len(x)))
        self._read_out()

    def _fork(self, into: Segment) -> None:
        """The streams of a segment, from those of the one before."""
        block, inputs, tokens = self._model.blocks[into.layers.start], self._inputs, self._rows[0]
        assert isinstance(block, ForkingBlock)
        before, after = (self._bubbles[i] for i in (into.index - 1, into.index))
        source, target = (self._rows[i] for i in (into.index - 1, into.index))
        x, out = (self._x[i] for i in (into.index - 1, into.index))
        scores, candidates = self._cache.segments[into.index - 1].scores, self._candidates[into.index]
        weigh(block, x, before, tokens, source, scores, candidates)
        rank(before, inputs.request, tokens, source, scores, inputs.room, candidates)
        fit(tokens, candidates, inputs.room, inputs.held[into.index], after, target)
        spread(block, x, before, candidates, after, tokens, inputs.request, inputs.position, self._frequencies, out,
               target, self._tally[into.index])  # fmt: skip

    def _read_out(self) -> None:
        """Logits and draws, but for a model that averages the logits of streams."""
        config, ends = self._model.config, self._ends
        if config.averaging == "logit":
            return
        torch.index_select(self._bubbles[-1].start, 0, self._inputs.last, out=ends.start)
        torch.index_select(self._bubbles[-1].count, 0, self._inputs.last, out=ends.count)
        average(self._x[-1], ends, self._model.transformer.ln_f, self._read,
                rightmost=config.averaging == "rightmost", norm_first=config.norm_before_averaging)  # fmt: skip
        torch.mm(self._read, self._model.transformer.wte.weight.T, out=self.logits)
        draw(self.logits, self._inputs, ends.lane, self._best, self._best_at, self._token, self._vocabulary)

    def _rows_of(self, pages: SegmentPages, lane: Tensor) -> Rows:
        inputs, index, config, device = self._inputs, pages.segment.index, self._model.config, lane.device
        room, half, begin = self.tokens << index, config.head_width // 2, int(self._cache.ledger.begin[index])
        original = index == 0
        return Rows(
            most=min(self.tokens, self._cache.ledger.ids.shape[1]) << index,
            usual=min(room, -(-self.tokens * config.max_block_size // config.block_size)),
            page_size=pages.page_size,
            table=inputs.table[:, begin:],
            lane=lane,
            start=inputs.first if original else torch.zeros_like(lane),
            count=inputs.count if original else torch.zeros_like(lane),
            length=inputs.length if original else torch.zeros_like(lane),
            live=inputs.live if original else torch.zeros(1, dtype=torch.int32, device=device),
            slot=torch.zeros(room, dtype=torch.int32, device=device),
            score=torch.zeros(room, device=device),
            cos=torch.zeros((room, half), device=device),
            sin=torch.zeros((room, half), device=device),
        )
