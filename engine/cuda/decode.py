"""One decode step that the device runs alone: one new token for each batch slot, from its embedding to the next token.

The host does not wait for it. Before it launches one, it allocates as many pages as the step may need
(`engine.cuda.decode_batch`).

Letters: B batch slots, G segments.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import numpy as np
import torch
import triton
from torch import Tensor, nn

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cache.layout import Indices
from thoughtbubbles.engine.cache.ledger import Numbers
from thoughtbubbles.engine.cuda.kernels.forking import UNKNOWN, embed, fork
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.engine.cuda.kernels.tiles import few
from thoughtbubbles.engine.cuda.kernels.words import report_words
from thoughtbubbles.engine.cuda.lanes import Lanes
from thoughtbubbles.engine.cuda.layers import has_kernels
from thoughtbubbles.engine.cuda.sampler import DeviceSampler
from thoughtbubbles.engine.cuda.step import Step, Workspace
from thoughtbubbles.model import ForkingBlock, ModelConfig, Thoughtbubbles
from thoughtbubbles.model.transformer import Block

PROGRAMS = 528
"""Attention programs to launch at once: four per multiprocessor of a large device."""
MOST_SPLITS = 16
"""The most programs that share the keys of one batch slot and head."""
FLIGHTS = 2
"""Steps whose report is on the host at once: the one that is computed, and the one before, which the host reads."""


def decodes_alone(config: ModelConfig) -> bool:
    """Return whether a `DecodeStep` computes models of this kind; `CachedForward` decodes the others."""
    return has_kernels(config) and config.averaging != "logit"


class DecodeStep(Step):
    """The decode step for a batch size."""

    normed = True  # where it is not part of the product that follows
    plain: ClassVar[tuple[bool, ...]] = (True, False)
    """The values of `plain` that `run` can have."""

    def __init__(
        self, model: Thoughtbubbles, cache: ForkCache, lanes: Lanes, sampler: DeviceSampler, *, batch_size: int
    ) -> None:
        """For requests in `batch_size` slots, over the pages of `cache`; `sampler` draws for their lanes."""
        splits = triton.next_power_of_2(max(1, PROGRAMS // (batch_size * model.config.n_head)))
        work = Workspace.zeros(model, batch_size=batch_size, tokens=batch_size, splits=min(MOST_SPLITS, splits))
        super().__init__(model, cache, work, sampler, batch_size=batch_size)
        device, segments = work.x.device, len(cache.segments)
        self.lane = torch.full((batch_size,), -1, dtype=torch.int32, device=device)
        """(B,) int32, the lane of each slot; -1 for an empty one."""
        self.output = torch.zeros(4 * segments + (1 + segments) * batch_size, dtype=torch.int32, device=device)
        """What the host reads of a step, all that kernels write of it; see `read`."""
        on_cuda = device.type == "cuda"
        self._turn = torch.zeros(1, dtype=torch.int32, device=device)
        """(1,) the row of `_reports` that the next run writes."""
        self._reports = torch.zeros((FLIGHTS, len(self.output)), dtype=torch.int32, device="cpu", pin_memory=on_cuda)
        """(FLIGHTS,·) `output` on the host, of each run in turn."""
        self._landed = [torch.cuda.Event() if on_cuda else None for _ in range(FLIGHTS)]
        self._runs = 0
        self._tally = self.output[: 4 * segments].view(torch.int64).view(segments, 2)
        self._token, *self._lengths = self.output[4 * segments :].view(1 + segments, batch_size)
        self._lanes, self._newest = lanes, sampler.state.token
        self._time = torch.zeros(batch_size, dtype=torch.int32, device=device)
        """(B,) the index of each slot's token in its sequence."""
        # rows of 16 bytes: Triton compiles a kernel again if the alignment of a pointer differs
        self._counts = torch.full((segments, -(-batch_size // 4) * 4), UNKNOWN, dtype=torch.int32, device=device)
        """(G,·) each slot's new streams in each segment."""
        self._rows = [
            self._rows_of(pages, self.lane, lanes.table, tokens=batch_size, rows=batch_size << i, most=1 << i,
                          length=length, count=count[:batch_size])
            for i, (pages, length, count) in enumerate(zip(cache.segments, self._lengths, self._counts, strict=True))
        ]  # fmt: skip

    def capture(self, stream: torch.cuda.Stream) -> None:
        """As `Step.capture`, whose runs do not count."""
        super().capture(stream)
        self._turn.zero_()

    def run(self, *, plain: bool) -> None:
        """Advance the lanes in the batch slots by a token, and draw the next; `plain` as in `DeviceSampler.draw`."""
        self._replay(_name(plain))
        self._runs += 1

    def report(self) -> tuple[Numbers, torch.cuda.Event | None]:
        """Return the host's memory (·,) that the last run writes, and on a CUDA device the event after which it has.

        It is valid until the run after the next, which overwrites it.
        """
        at = (self._runs - 1) % FLIGHTS
        landed = self._landed[at]
        if landed is not None:
            landed.record()
        return self._reports[at].numpy(), landed

    def read(self, report: Numbers) -> tuple[Indices, Numbers]:
        """Return what a report says.

        These are (G,2) fork copies that survived and streams that were deleted on the way into each segment, in all
        steps so far; and (1+G,B) each slot's next token, and its streams in each segment.
        """
        words = self._tally.numel() * 2
        return report[:words].view(np.int64).reshape(-1, 2), report[words:].reshape(-1, self.batch_size)

    @property
    def _launches(self) -> Mapping[str, Callable[[], None]]:
        return {_name(plain): partial(self._launch, plain=plain) for plain in self.plain}

    def _launch(self, *, plain: bool) -> None:
        self._begin()
        self._end()
        self._draw(plain=plain)
        report_words(self.output, self._turn, self._reports)

    def _clear(self) -> None:
        self.lane.fill_(-1)

    def _embed(self) -> None:
        embed(
            embedding=self._model.transformer.wte.weight, token=self._newest, lanes=self._lanes, time=self._time,
            rows=self._rows[0], counts=self._counts, frequencies=self._frequencies, x=self._x(0),
            norm=self._norm(self._model.blocks[0], 0), normed=self._work.scratch.normed,
        )  # fmt: skip

    def _fork(self, block: ForkingBlock, into: int) -> None:
        before = self._cache.segments[into - 1]
        fork(
            block=block, x=self._x(into - 1), rows=self._rows[into - 1], scores=before.scores, lanes=self._lanes,
            time=self._time, into=self._rows[into], segment=into, block_size=self._model.config.block_size,
            frequencies=self._frequencies, out=self._x(into), norm=self._norm(block, into),
            normed=self._work.scratch.normed, tally=self._tally[into], early=bool(before.segment.layers),
        )  # fmt: skip

    def _norm(self, block: Block, segment: int) -> nn.LayerNorm | None:
        """Return the first LayerNorm of a segment, unless it is part of the product that follows."""
        return None if few(self._x(segment), self._rows[segment].usual) else block.ln_1

    def _last_rows(self) -> Rows:
        return self._rows[-1]

    @property
    def _slots(self) -> tuple[Tensor, Tensor]:
        return self.lane, self._token


def _name(plain: bool) -> str:
    return "plain" if plain else "any"
