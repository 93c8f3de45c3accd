"""One decode step that the device runs alone: one new token for each place, from its vector to the next token.

The host neither waits for it nor knows how many streams it computes: selection, the places in the cache, attention
and the draw are the device's, and the whole is one CUDA graph. What the host does beforehand is to have pages there, as
many as the step could need (`engine.cuda.decode_batch`).

Letters: B places of the batch, M streams that there may be, D model width, V vocabulary, G segments.
"""

import numpy as np
import torch
import triton
from torch import Tensor

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cache.layout import Indices
from thoughtbubbles.engine.cache.ledger import Numbers
from thoughtbubbles.engine.cache.pages import Segment, SegmentPages
from thoughtbubbles.engine.cuda.kernels.forking import Choice, average, begin, choose, settle
from thoughtbubbles.engine.cuda.kernels.lanes import Lanes
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.engine.cuda.kernels.sampling import TOKENS_AT_ONCE, draw
from thoughtbubbles.engine.cuda.layers import Scratch, has_kernels, run_layers
from thoughtbubbles.model import ForkingBlock, ModelConfig, Thoughtbubbles
from thoughtbubbles.model.rotary import BASE

PROGRAMS = 528
"""Attention programs that are wanted at once, four for each of a large device's multiprocessors."""
MOST_SPLITS = 16
"""Programs that share out the keys of one place and head, at most."""


def decodes_alone(config: ModelConfig) -> bool:
    """Whether a model of this kind can be decoded so; the others are decoded by `CachedForward`, a step at a time."""
    return has_kernels(config) and config.averaging != "logit"


class DecodeStep:
    """The step for so many places: `run` launches it, or once it is captured replays it."""

    def __init__(self, model: Thoughtbubbles, cache: ForkCache, lanes: Lanes, *, places: int, vocabulary: int) -> None:
        """For tokens 0 … `vocabulary` - 1 of the model's, over the pages of a cache."""
        self.model = model
        self.cache = cache
        self.lanes = lanes
        self.vocabulary = vocabulary
        weight = model.transformer.wte.weight
        self.lane = torch.full((places,), -1, dtype=torch.int32, device=weight.device)
        """(B,) int32, the lane of each place; -1 leaves it empty."""
        segments = len(cache.segments)
        self.told = torch.zeros(4 * segments + (1 + segments) * places, dtype=torch.int32, device=weight.device)
        """What the host is told, in one copy."""
        self.tally = self.told[: 4 * segments].view(torch.int64).view(segments, 2)
        """(G,2) int64, of all steps of this size: fork copies that survived, and streams deleted, into each segment."""
        self.report = self.told[4 * segments :].view(1 + segments, places)
        """(1+G,B) int32: each place's next token, and the streams that it holds in each segment."""
        self.logits = weight.new_empty((places, model.config.vocab_size))
        """(B,V) of each place's next token."""
        blocks = -(-vocabulary // TOKENS_AT_ONCE)
        self._best = torch.empty((places, blocks), device=weight.device)
        self._best_at = torch.empty((places, blocks), dtype=torch.int32, device=weight.device)
        self._read = weight.new_empty((places, model.config.n_embd))
        self._time = torch.zeros(places, dtype=torch.int32, device=weight.device)
        exponent = torch.arange(0, model.config.head_width, 2, device=weight.device, dtype=torch.float32)
        self._frequencies = BASE ** -(exponent / model.config.head_width)
        self._rows = [self._rows_of(pages) for pages in cache.segments]
        most = len(self._rows[-1].slot)
        x = weight.new_empty((2, most, model.config.n_embd))
        self._x = [x[i % 2, : len(rows.slot)] for i, rows in enumerate(self._rows)]  # neighbours never share memory
        self._choices = [Choice.empty(places, rows.most, weight.device) for rows in self._rows]
        splits = triton.next_power_of_2(max(1, PROGRAMS // (places * model.config.n_head)))
        self._scratch = Scratch.zeros(model.config, weight, places=places, rows=most, usual=places,
                                      splits=min(MOST_SPLITS, splits))  # fmt: skip
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}

    @property
    def places(self) -> int:
        """B."""
        return self.lane.shape[0]

    def read(self, told: Tensor) -> tuple[Indices, Numbers]:
        """The tally and the report of what has been `told`, on the host."""
        words = 4 * len(self.tally)
        return told[:words].numpy().view(np.int64).reshape(-1, 2), told[words:].numpy().reshape(-1, self.places)

    @torch.inference_mode()
    def capture(self, stream: torch.cuda.Stream) -> None:
        """Record the step on a stream of its device: torch's own for that is of whichever device recorded first.

        No lane may have a place meanwhile, for what is recorded is also run.
        """
        self.lane.fill_(-1)
        for drawing in (True, False):
            self._launch(drawing=drawing)  # compiles what is new
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                self._launch(drawing=drawing)
            self._graphs[drawing] = graph

    @torch.inference_mode()
    def run(self, *, drawing: bool = True) -> None:
        """Move every lane that has a place on by a token, and draw the next, unless others are to draw it."""
        if drawing in self._graphs:
            self._graphs[drawing].replay()
        else:
            self._launch(drawing=drawing)

    def _launch(self, *, drawing: bool) -> None:
        first = self.model.blocks[0].ln_1
        begin(self.model.transformer.wte.weight, self.lanes, self._time, self._rows[0], self._frequencies, self._x[0],
              first, self._scratch.normed)  # fmt: skip
        for pages, rows, x in zip(self.cache.segments, self._rows, self._x, strict=True):
            if pages.segment.index:
                self._fork(pages.segment)
            run_layers(self.model, pages, x, rows, self._scratch.of(len(x)), normed=True)
        self._read_out()
        if drawing:
            draw(self.logits, self.lanes, self.lane, self._best, self._best_at, self.report[0], self.vocabulary)

    def _fork(self, into: Segment) -> None:
        """The streams of a segment, from those of the one before."""
        block = self.model.blocks[into.layers.start]
        assert isinstance(block, ForkingBlock)
        before, after = (self._rows[i] for i in (into.index - 1, into.index))
        source, target = (self._x[i] for i in (into.index - 1, into.index))
        choice = self._choices[into.index]
        choose(block, source, before, self.cache.segments[into.index - 1].scores, self.lanes, self._time, after,
               into.index, self.model.config.block_size, choice, self.tally[into.index])  # fmt: skip
        settle(block, source, before, self.lanes, self._time, choice, after, into.index, self._frequencies,
               target, block.ln_1, self._scratch.normed)  # fmt: skip

    def _read_out(self) -> None:
        config = self.model.config
        average(self._x[-1], self._rows[-1], self.model.transformer.ln_f, self._read,
                rightmost=config.averaging == "rightmost", norm_first=config.norm_before_averaging)  # fmt: skip
        torch.mm(self._read, self.model.transformer.wte.weight.T, out=self.logits)

    def _rows_of(self, pages: SegmentPages) -> Rows:
        index, places, device = pages.segment.index, self.places, self.lane.device
        most, half = 1 << index, self.model.config.head_width // 2

        def whole(n: int) -> Tensor:
            return torch.zeros(n, dtype=torch.int32, device=device)

        return Rows(
            most=most,
            usual=min(most * places, -(-places * self.model.config.max_block_size // self.model.config.block_size)),
            page_size=pages.page_size,
            table=self.lanes.tables[index],
            lane=self.lane,
            start=whole(places),
            count=whole(places),
            length=self.report[1 + index],
            live=whole(1),
            slot=whole(most * places),
            score=torch.zeros(most * places, device=device),
            cos=torch.zeros((most * places, half), device=device),
            sin=torch.zeros((most * places, half), device=device),
        )
