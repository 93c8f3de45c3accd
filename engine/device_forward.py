"""Prefill on a device: `CachedForward` in steps that the host does not wait in, each captured beforehand.

Letters: R requests, T new tokens of all of them, G segments, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from engine.cached_forward import CachedForward, Chunk, Extended, ForkTally
from engine.fork_cache import ForkCache
from engine.layout import Layout
from engine.ledger import Numbers
from engine.prefill_step import PrefillStep, Workspace
from engine.scoring import last_logits
from engine.transfer import to_device
from model import Streams, Thoughtbubbles, budget

SIZES = (64, 128, 256, 512, 1024, 2048)
"""Tokens of the steps that there are; more are taken in by several."""
PLACES = 16
"""Requests that one step may take in."""


class DeviceForward(CachedForward):
    """The same streams, with every request's work in each kernel."""

    def __init__(
        self,
        model: Thoughtbubbles,
        cache: ForkCache,
        tally: ForkTally,
        *,
        vocabulary: int,
        sizes: Sequence[int] = SIZES,
    ) -> None:
        """With steps of so many tokens, `sizes`, which rise; none is larger than all requests together can fill.

        They draw from the first `vocabulary` tokens of the model's.
        """
        super().__init__(model, cache, tally)
        self._device = model.transformer.wte.weight.device
        self._places = min(PLACES, len(cache.ledger.ids))
        sizes = [n for n in sizes if n == sizes[0] or n < 2 * cache.ledger.ids.size]
        work = Workspace.empty(model, sizes, self._places)
        self._steps = [
            PrefillStep(model, cache, work, tokens=n, places=self._places, vocabulary=vocabulary) for n in sizes
        ]
        self.max_prefill_tokens = sizes[-1]

    def prepare(self) -> None:
        """As `CachedForward.prepare`: capture the steps, where that can be."""
        stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        for step in self._steps:
            step.capture(stream) if stream else step.prepare()

    def extend(self, chunks: list[Chunk], meanwhile: Callable[[], None] | None = None) -> Extended:
        """As `CachedForward.extend`; what it returns is written over by the next."""
        shares = list(self._shares(chunks))
        if len(shares) == 1:
            return self._compute(chunks, meanwhile)
        *first, last = shares
        parts = [*[_copied(self._compute(share)) for share in first], self._compute(last, meanwhile)]
        ends = np.cumsum([len(chunk.ids) for chunk in chunks])
        done = np.cumsum([len(chunk.ids) for share in shares for chunk in share])
        whole = np.flatnonzero(np.isin(done, ends)).tolist()
        logits = torch.cat([part.logits for part in parts])[whole]
        return Extended(_joined([part.streams for part in parts]), logits)

    def _shares(self, chunks: list[Chunk]) -> Iterator[list[Chunk]]:
        """The chunks in as few steps as can be, in their order; one is cut where it does not fit."""
        share: list[Chunk] = []
        most = left = self.max_prefill_tokens
        for chunk in chunks:
            ids = chunk.ids
            while ids:
                if not left or len(share) == self._places:
                    yield share
                    share, left = [], most
                share.append(replace(chunk, ids=ids[:left]))
                ids, left = ids[left:], left - len(share[-1].ids)
        yield share

    def _compute(self, chunks: list[Chunk], meanwhile: Callable[[], None] | None = None) -> Extended:
        """`extend` for what one step has room for."""
        layout = Layout.of([len(chunk.ids) for chunk in chunks])
        tokens = len(layout.group)
        step = next(step for step in self._steps if step.tokens >= tokens)
        self._tell(step, chunks, layout)
        step.run()
        if meanwhile:
            meanwhile()
        tally, drawn, counts = step.report()
        counts = counts[:, :tokens]
        self._note(chunks, layout, counts, tally.tolist())
        x, score = step.streams(int(counts[-1].sum()))
        token_index = to_device(np.arange(tokens).repeat(counts[-1]), self._device)
        streams = Streams(x[None], score[None], token_index[None], tokens)
        if self.model.config.averaging == "logit":
            last = (layout.ends - 1).tolist()
            return Extended(streams, last_logits(self.model, streams, last, self.packed.head))
        return Extended(streams, step.logits[: len(chunks)].float(), drawn[: len(chunks)].tolist())

    def _tell(self, step: PrefillStep, chunks: list[Chunk], layout: Layout) -> None:
        """Take pages for all streams that there may be, and tell the step of the chunks."""
        ledger, told, counts, ends = self.cache.ledger, step.told, layout.counts, layout.ends
        rows = np.array([chunk.state.row for chunk in chunks])
        tokens = ledger.tokens[rows]
        self.cache.reserve([chunk.state for chunk in chunks], tokens + counts)
        position = tokens[layout.group] + layout.place
        streams = budget(position + 1, ledger.kappa[rows][layout.group], self.model.config.block_size)
        _write(told.seed, [chunk.seed for chunk in chunks])
        _write(told.drawn, [chunk.drawn for chunk in chunks])
        _write(told.temperature, [chunk.temperature for chunk in chunks])
        _write(told.ids, [i for chunk in chunks for i in chunk.ids])
        _write(told.request, layout.group)
        _write(told.position, position)
        _write(told.room, streams - (position + 1))
        told.count.zero_()
        _write(told.count, counts)
        _write(told.first, ends - counts)
        _write(told.last, ends - 1)
        _write(told.length, tokens + counts)
        _write(told.held.T, ledger.streams[rows])
        _write(told.table, ledger.table[rows])
        told.live[0] = len(position)

    def _note(self, chunks: list[Chunk], layout: Layout, counts: Numbers, tally: list[list[int]]) -> None:
        """Let the cache and the tally know, now that the host does."""
        for chunk, end, size in zip(chunks, layout.ends.tolist(), layout.counts.tolist(), strict=True):
            for i, ends in enumerate(counts[:, end - size : end].cumsum(1)):
                self.cache.grow(chunk.state, i, chunk.state.streams(i) + ends)
            self.cache.extend(chunk.state, chunk.ids)
        for layer, (forks, deletions) in zip(self.model.config.fork_layers, tally[1:], strict=True):
            self.tally.forks[layer] += forks
            self.tally.deletions[layer] += deletions


def _write(field: Tensor, values: ArrayLike) -> None:
    """Begin a field on the host with values; what stands after them is of no meaning."""
    field.numpy()[: len(np.asarray(values))] = values


def _copied(part: Extended) -> Extended:
    """The same, for another step to come."""
    streams = part.streams
    kept = Streams(streams.x.clone(), streams.score.clone(), streams.token_index, streams.tokens)
    return Extended(kept, part.logits.clone())


def _joined(parts: Sequence[Streams]) -> Streams:
    """The streams of several steps, one after the other."""
    starts = np.cumsum([0, *[part.tokens for part in parts]]).tolist()
    token_index = [part.token_index + start for part, start in zip(parts, starts, strict=False)]
    return Streams(
        torch.cat([part.x for part in parts], 1),
        torch.cat([part.score for part in parts], 1),
        torch.cat(token_index, 1),
        starts[-1],
    )
