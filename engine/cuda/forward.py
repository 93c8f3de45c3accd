"""Prefill on a device: `CachedForward` in steps that the host does not wait in, each captured beforehand.

Letters: R requests, T new tokens of all of them, G segments, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cache.layout import Layout
from thoughtbubbles.engine.cache.ledger import Numbers
from thoughtbubbles.engine.cuda.prefill import PrefillStep
from thoughtbubbles.engine.cuda.sampler import DeviceSampler, scored
from thoughtbubbles.engine.cuda.step import Workspace
from thoughtbubbles.engine.portable.forward import CachedForward, Chunk, Extended, ForkTally, lay_out
from thoughtbubbles.engine.scoring import last_logits
from thoughtbubbles.model import Thoughtbubbles, budget

SIZES = (64, 128, 256, 512, 1024, 2048)
"""Tokens of the steps that there are; more are taken in by several."""
PLACES = 32
"""Requests that one step may take in."""


class DeviceForward(CachedForward):
    """The same streams, with every request's work in each kernel."""

    def __init__(
        self,
        model: Thoughtbubbles,
        cache: ForkCache,
        tally: ForkTally,
        *,
        sampler: DeviceSampler | None,
        sizes: Sequence[int] = SIZES,
    ) -> None:
        """With steps of so many tokens, `sizes`, which rise; none is larger than all requests together can fill.

        `sampler` draws the token that follows, unless the model averages logits of streams: then there is none.
        """
        super().__init__(model, cache, tally)
        self._device, self._sampler = model.transformer.wte.weight.device, sampler
        self._places = min(PLACES, len(cache.ledger.ids))
        sizes = [n for n in sizes if n == sizes[0] or n < 2 * cache.ledger.ids.size]
        work = Workspace.shared(model, batch_size=self._places, sizes=sizes)
        self._steps = [PrefillStep(model, cache, work, sampler, tokens=n, batch_size=self._places) for n in sizes]
        self.max_prefill_tokens = sizes[-1]

    def prepare(self) -> None:
        """As `CachedForward.prepare`: capture the steps, where that can be."""
        stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        for step in self._steps:
            step.capture(stream) if stream else step.prepare()

    def extend(self, chunks: list[Chunk]) -> Extended:
        """As `CachedForward.extend`; the next step overwrites what it returns."""
        return self.launch(chunks).land()

    def launch(self, chunks: list[Chunk]) -> "Prefill":
        """Start to compute the chunks. If they take several steps, all but the last are waited for."""
        *first, last = self._shares(chunks)
        parts = [_copied(self._launch(share).land()) for share in first]
        ends = np.cumsum([len(chunk.ids) for chunk in chunks])
        done = np.cumsum([len(chunk.ids) for share in (*first, last) for chunk in share])
        return Prefill(parts, self._launch(last), np.flatnonzero(np.isin(done, ends)).tolist())

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
                share.append(replace(chunk, ids=ids[:left], draws=chunk.draws and len(ids) <= left))
                ids, left = ids[left:], left - len(share[-1].ids)
        yield share

    def _launch(self, chunks: list[Chunk]) -> "_Launched":
        """Start `extend` for chunks that fit into one step."""
        layout = Layout.of([len(chunk.ids) for chunk in chunks])
        step = next(step for step in self._steps if step.tokens >= len(layout.group))
        self._tell(step, chunks, layout)
        reports = any(chunk.draws and chunk.logprobs is not None for chunk in chunks)
        step.run(scored=len(chunks) if reports else 0)
        return _Launched(self, step, chunks, layout)

    def land(self, step: PrefillStep, chunks: list[Chunk], layout: Layout) -> Extended:
        """Wait for a step, and record in the cache and in the tally what it computed."""
        tally, drawn, counts = step.wait()
        counts = counts[:, : len(layout.group)]
        self._note(chunks, layout, counts, tally.tolist())
        streams = counts[-1].astype(np.int64)
        x, score = step.streams(int(streams.sum()))
        if not self._sampler:
            last = (layout.ends - 1).tolist()
            logits = last_logits(self.model, lay_out(x, score, streams), last, self.packed.head)
            return Extended(x, score, streams, logits)
        logprobs = scored(step.logprobs, [chunk.logprobs if chunk.draws else None for chunk in chunks],
                          self._sampler.vocabulary)  # fmt: skip
        return Extended(x, score, streams, step.logits[: len(chunks)], drawn[: len(chunks)].tolist(), logprobs)

    def _tell(self, step: PrefillStep, chunks: list[Chunk], layout: Layout) -> None:
        """Take pages for all streams that there may be, and tell the step of the chunks."""
        ledger, counts, ends = self.cache.ledger, layout.counts, layout.ends
        rows = np.array([chunk.state.row for chunk in chunks])
        tokens = ledger.tokens[rows]
        self.cache.reserve([chunk.state for chunk in chunks], tokens + counts)
        position = tokens[layout.group] + layout.place
        streams = budget(position + 1, ledger.kappa[rows][layout.group], self.model.config.block_size)
        step.write(
            lane=self._lanes(chunks),
            ids=[i for chunk in chunks for i in chunk.ids],
            request=layout.group,
            position=position,
            fork_budget=streams - (position + 1),
            first=ends - counts,
            last=ends - 1,
            count=counts,
            length=tokens + counts,
            streams=ledger.streams[rows].T,
            table=ledger.table[rows],
            live=[len(position)],
        )

    def _lanes(self, chunks: list[Chunk]) -> list[int]:
        """Return the lane that draws for each chunk: its request's, which the draw moves on, or one that nobody has."""
        spare = self._sampler.spare_lane if self._sampler else -1
        return [chunk.state.row if chunk.draws else spare for chunk in chunks]

    def _note(self, chunks: list[Chunk], layout: Layout, counts: Numbers, tally: list[list[int]]) -> None:
        """Let the cache and the tally know, now that the host does."""
        for chunk, end, size in zip(chunks, layout.ends.tolist(), layout.counts.tolist(), strict=True):
            held = self.cache.ledger.streams[chunk.state.row, :, None]
            self.cache.extend(chunk.state, chunk.ids, held + counts[:, end - size : end].cumsum(1))
        for layer, (forks, deletions) in zip(self.model.config.fork_layers, tally[1:], strict=True):
            self.tally.forks[layer] += forks
            self.tally.deletions[layer] += deletions


@dataclass(frozen=True)
class _Launched:
    """One step that has been launched."""

    forward: DeviceForward
    step: PrefillStep
    chunks: list[Chunk]
    layout: Layout

    def land(self) -> Extended:
        return self.forward.land(self.step, self.chunks, self.layout)


@dataclass(frozen=True)
class Prefill:
    """Chunks that have been launched, in one step or in several."""

    parts: list[Extended]
    """What the steps before the last one computed."""
    last: _Launched
    ends: list[int]
    """Which of the parts' chunks end a chunk that was launched."""

    def land(self) -> Extended:
        """Wait for it. The next step overwrites what this returns."""
        last = self.last.land()
        return _joined([*self.parts, last], self.ends) if self.parts else last


def _copied(part: Extended) -> Extended:
    """The same, for another step to come."""
    return replace(part, x=part.x.clone(), score=part.score.clone(), logits=part.logits.clone())


def _joined(parts: Sequence[Extended], ends: list[int]) -> Extended:
    """What came of several steps, of whose chunks these are the ends of whole ones."""
    drawn = [token for part in parts for token in part.drawn or ()]
    logprobs = [logprob for part in parts for logprob in part.logprobs or ()]
    return Extended(
        torch.cat([part.x for part in parts]),
        torch.cat([part.score for part in parts]),
        np.concatenate([part.counts for part in parts]),
        torch.cat([part.logits for part in parts])[ends],
        [drawn[i] for i in ends] if drawn else None,
        [logprobs[i] for i in ends] if logprobs else None,
    )
