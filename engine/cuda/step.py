"""What decode and prefill steps share: a forward pass of some requests that the device runs without the host.

The device alone knows how many streams survive each fork, and so how many rows each kernel computes, until the step has
run. The host allocates pages beforehand for all streams that the budget admits. So each step is one CUDA graph,
or a few if the host has something to do between its parts.

Letters: B batch slots, M rows that there may be, D model width, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cache.pages import SegmentPages
from thoughtbubbles.engine.cuda.compiling import compile_launched
from thoughtbubbles.engine.cuda.kernels.forking import average
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.engine.cuda.layers import Scratch, num_sums, run_layers
from thoughtbubbles.engine.cuda.sampler import DeviceSampler
from thoughtbubbles.model import ForkingBlock, ModelConfig, Thoughtbubbles
from thoughtbubbles.model.rotary import rotary_frequencies


@dataclass(frozen=True)
class Workspace:
    """Memory that a step overwrites. Steps that never run at the same time can share it."""

    x: Tensor
    """(2,M,D): the streams of neighbouring segments, by turns."""
    scratch: Scratch

    @classmethod
    def zeros(cls, model: Thoughtbubbles, *, batch_size: int, tokens: int, splits: int = 1) -> Self:
        """Return memory for steps of at most so many tokens; `splits` as in `Scratch.zeros`."""
        config, rows = model.config, tokens << len(model.config.fork_layers)
        sums = num_sums(rows, tokens, config.n_embd)
        return cls._of(model, batch_size=batch_size, rows=rows, sums=sums, splits=splits)

    @classmethod
    def packed(cls, model: Thoughtbubbles, *, batch_size: int, sizes: Sequence[int]) -> Self:
        """Return memory for prefill steps of each of these numbers of tokens."""
        config, segments = model.config, range(len(model.config.fork_layers) + 1)
        rows = max(packed_rows(config, max(sizes), i) for i in segments)
        sums = max(num_sums(packed_rows(config, n, i), usual_rows(config, n, i), config.n_embd)
                   for n in sizes for i in segments)  # fmt: skip
        return cls._of(model, batch_size=batch_size, rows=rows, sums=sums, packed=True)

    @classmethod
    def _of(
        cls, model: Thoughtbubbles, *, batch_size: int, rows: int, sums: int, splits: int = 1, packed: bool = False
    ) -> Self:
        config, weight = model.config, model.transformer.wte.weight
        scratch = Scratch.zeros(
            config, weight, batch_size=batch_size, rows=rows, sums=sums, splits=splits, packed=packed
        )
        return cls(weight.new_zeros((2, rows, config.n_embd)), scratch)


def usual_rows(config: ModelConfig, tokens: int, segment: int) -> int:
    """Return the most streams that new sequences of so many tokens together have in a segment at the model's ratio."""
    return min(tokens << segment, -(-tokens * config.max_block_size // config.block_size))


def packed_rows(config: ModelConfig, tokens: int, segment: int) -> int:
    """Return the most streams that a prefill step of so many tokens computes in a segment.

    They are the usual ones, and at least those of one token: a step takes fewer tokens of requests that may have more.
    """
    return max(1 << segment, usual_rows(config, tokens, segment))


def prepare_steps(steps: Collection["Step"], device: torch.device) -> None:
    """Capture steps on a CUDA device, or compile them elsewhere."""
    if device.type != "cuda":
        _prepare(steps)
        return
    compile_launched(lambda: _prepare(steps), device)
    stream = torch.cuda.Stream(device)
    for step in steps:
        step.capture(stream)


def _prepare(steps: Collection["Step"]) -> None:
    for step in steps:
        step.prepare()


class Step(ABC):
    """A forward pass for a fixed number of tokens and batch slots, which is launched, or replayed once captured.

    Subclasses set `_rows`, and say what comes before the layers of each segment.
    """

    normed: ClassVar[bool]
    """Whether `_embed` and `_fork` also write LN_1 of the streams to `Scratch.normed`."""

    def __init__(
        self, model: Thoughtbubbles, cache: ForkCache, work: Workspace, sampler: DeviceSampler | None, *,
        batch_size: int,
    ) -> None:  # fmt: skip
        """For requests in `batch_size` slots, over the pages of `cache`; without a sampler there are no logits."""
        weight = model.transformer.wte.weight
        self.batch_size = batch_size
        self.logits = weight.new_empty((batch_size, model.config.vocab_size))
        """(B,V) of the token that follows each request's last one."""
        self._model, self._cache, self._work, self._sampler = model, cache, work, sampler
        self._frequencies = rotary_frequencies(model.config.head_width, weight.device)
        self._averaged = weight.new_empty((batch_size, model.config.n_embd))
        self._rows: list[Rows] = []
        """The streams of each segment."""
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}

    def capture(self, stream: torch.cuda.Stream) -> None:
        """Record the step on a stream of its device: torch's default one belongs to the device that recorded first.

        What is recorded is also run, so no request may be in its slots.
        """
        self._clear()
        for name, launch in self._launches.items():
            launch()  # loads the kernels, and compiles them if nobody has
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                launch()
            self._graphs[name] = graph

    def prepare(self) -> None:
        """Compile the kernels, without a graph."""
        self._clear()
        for launch in self._launches.values():
            launch()

    def _replay(self, name: str) -> None:
        if name in self._graphs:
            self._graphs[name].replay()
        else:
            self._launches[name]()

    @torch.inference_mode()
    def _begin(self) -> None:
        """Launch the forward pass up to the streams that enter the last segment."""
        self._embed()
        for pages, after in pairwise(self._cache.segments):
            self._run(pages)
            block = self._model.blocks[after.segment.layers.start]
            assert isinstance(block, ForkingBlock)
            self._fork(block, after.segment.index)

    @torch.inference_mode()
    def _end(self) -> None:
        """Launch the rest, to the logits if there is a sampler."""
        self._run(self._cache.segments[-1])
        if self._sampler:
            self._read_out(self._last_rows())

    def _run(self, pages: SegmentPages) -> None:
        """Launch the layers of a segment."""
        x, rows = self._x(pages.segment.index), self._rows[pages.segment.index]
        run_layers(self._model, pages, x, rows, self._work.scratch.of(len(x)), normed=self.normed)

    @torch.inference_mode()
    def _draw(self, *, plain: bool) -> None:
        """Launch the draw of the token that follows; `plain` as in `DeviceSampler.draw`."""
        assert self._sampler
        self._sampler.draw(self.logits, *self._slots, plain=plain)

    def _x(self, segment: int) -> Tensor:
        """Return the vectors (M,D) of a segment's streams; those of its neighbours are elsewhere."""
        return self._work.x[segment % 2, : len(self._rows[segment].slot)]

    def _read_out(self, rows: Rows) -> None:
        config = self._model.config
        average(
            x=self._x(len(self._rows) - 1), rows=rows, norm=self._model.transformer.ln_f, out=self._averaged,
            rightmost=config.averaging == "rightmost", norm_first=config.norm_before_averaging,
        )  # fmt: skip
        torch.mm(self._averaged, self._model.transformer.wte.weight.T, out=self.logits)

    def _rows_of(
        self, pages: SegmentPages, lane: Tensor, table: Tensor, *, tokens: int, rows: int, most: int, **known: Tensor
    ) -> Rows:
        """Return at most `rows` rows of a segment in a step of `tokens` tokens, of which one slot has at most `most`.

        `table` has the pages of all segments; `known` are columns that others write.
        """
        config, index, begin = self._model.config, pages.segment.index, self._cache.ledger.begin.tolist()
        end = begin[index + 1] if index + 1 < len(begin) else table.shape[1]
        return Rows.zeros(
            lane, table[:, begin[index] : end], page_size=pages.page_size, rows=rows, most=most,
            usual=usual_rows(config, tokens, index), half=config.head_width // 2, **known,
        )  # fmt: skip

    @property
    @abstractmethod
    def _launches(self) -> Mapping[str, Callable[[], None]]:
        """What is captured in a graph each, by its name, in the order in which one run launches some of them."""

    @abstractmethod
    def _clear(self) -> None:
        """Empty all batch slots, so that a launch computes nothing."""

    @abstractmethod
    def _embed(self) -> None:
        """Launch what makes one stream of each new token."""

    @abstractmethod
    def _fork(self, block: ForkingBlock, into: int) -> None:
        """Launch the fork before `block`, from the streams of the segment before `into` to those of `into`."""

    @abstractmethod
    def _last_rows(self) -> Rows:
        """Return the streams of each request's last token, after the last layer."""

    @property
    @abstractmethod
    def _slots(self) -> tuple[Tensor, Tensor]:
        """(B,) int32 the lane of each batch slot, and (B,) where its token goes."""
