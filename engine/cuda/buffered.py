"""The layers of requests without pages on a device: the kernels of a prefill, over buffers instead of pages.

A request's buffers are to the kernels pages of one lane that lie one after the other.

Letters: M streams that are computed, S streams of a request, D model width, H head width.
"""

from collections.abc import Iterator, Sequence

import torch
import triton
from torch import Tensor

from thoughtbubbles.engine.cache.buffers import Buffers
from thoughtbubbles.engine.cache.pages import Segment
from thoughtbubbles.engine.cuda.compiling import launch_compiled
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.engine.cuda.kernels.tiles import MOST_PARTS, MOST_ROWS_OF_PARTS
from thoughtbubbles.engine.cuda.layers import Scratch, run_layers
from thoughtbubbles.engine.portable.linear import PackedLinear
from thoughtbubbles.engine.transfer import to_device
from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.model.rotary import rotary_frequencies

COMPILED_ROWS = 4096
"""Most streams for which `prepare` compiles: of more, tiles are the same."""
ALIGNED = 4
"""Numbers of 32 bits in 16 bytes: Triton compiles a kernel again where a pointer's alignment differs."""


class BufferedLayers:
    """`SegmentLayers` (engine.revising.layers) with kernels: a segment of one request at a time."""

    def __init__(self, model: Thoughtbubbles, page_size: int) -> None:
        """Compute with the model's own weights. `page_size` is any, best that of kernels that are compiled anyhow."""
        weight = model.transformer.wte.weight
        self.head = PackedLinear(weight, None)
        self._model, self._page_size = model, page_size
        self._frequencies = rotary_frequencies(model.config.head_width, weight.device)
        self._scratch = self._memory(ALIGNED)
        self._table = self._pages(0)

    def prepare(self) -> None:
        """Compile the kernels for every number of streams, so that no request waits for it."""
        launch_compiled(self._run_all, self._table.device)

    @torch.inference_mode()
    def _run_all(self) -> None:
        config, like = self._model.config, self._model.transformer.wte.weight
        last = Segment(0, range(config.n_layer - 1, config.n_layer), forks_after=False)
        for rows in (1 << i for i in range(COMPILED_ROWS.bit_length())):
            shape = (1, config.n_head, rows, config.head_width)
            buffers = Buffers(segment=last, keys=like.new_zeros(shape), values=like.new_zeros(shape), streams=rows,
                              computed=rows)  # fmt: skip
            positions = torch.ones(rows, device=like.device)
            self._run(last, like.new_zeros((rows, config.n_embd)), positions, positions - 1, buffers)

    def each(
        self, segment: Segment, x: Tensor, positions: Tensor, score: Tensor, buffers: Sequence[Buffers]
    ) -> Iterator[int]:
        """As `SegmentLayers.each`."""
        rows = [each.computed for each in buffers]
        streams = zip(x.split(rows), positions.split(rows), score.split(rows), buffers, strict=True)
        for own, its_positions, its_score, into in streams:
            self._run(segment, own, its_positions, its_score.clone(), into)  # a clone is aligned
            yield len(own) * len(segment.layers)

    def _run(self, segment: Segment, x: Tensor, positions: Tensor, score: Tensor, buffers: Buffers) -> None:
        assert segment == buffers.segment, "buffers of another segment"
        if len(x) > len(self._scratch.normed):
            self._scratch = self._memory(triton.next_power_of_2(len(x)))
        run_layers(self._model, buffers, x, self._rows(positions, score, buffers), self._scratch.of(len(x)))

    def _rows(self, positions: Tensor, score: Tensor, buffers: Buffers) -> Rows:
        """Return the streams of one request as those of a batch of one slot."""
        device, angle = score.device, positions[:, None] * self._frequencies
        if self._table.shape[1] * self._page_size < buffers.streams:
            self._table = self._pages(buffers.streams)
        numbers = [0, 0, buffers.computed, buffers.streams]
        columns = to_device([[number] + [0] * (ALIGNED - 1) for number in numbers], device).int()
        lane, start, count, length = columns[:, :1]
        return Rows(
            page_size=self._page_size, table=self._table, lane=lane, start=start, count=count, length=length,
            most=buffers.computed, usual=buffers.computed, live=count,
            slot=torch.arange(buffers.first, buffers.streams, dtype=torch.int32, device=device), score=score,
            cos=angle.cos(), sin=angle.sin(),
        )  # fmt: skip

    def _memory(self, rows: int) -> Scratch:
        config, weight = self._model.config, self._model.transformer.wte.weight
        sums = max(rows, MOST_PARTS * min(rows, MOST_ROWS_OF_PARTS)) * config.n_embd
        return Scratch.zeros(config, weight, batch_size=1, rows=rows, sums=sums, packed=True)

    def _pages(self, streams: int) -> Tensor:
        """Return the table (1,P) of twice as many adjacent pages as so many streams need, and one more."""
        pages = 2 * streams // self._page_size + 1
        return torch.arange(pages, dtype=torch.int32, device=self._frequencies.device)[None]
