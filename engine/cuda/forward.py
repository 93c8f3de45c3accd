"""Prefill on a device: the forward pass of new tokens in captured steps, during which the host does not wait.

Letters: R requests, T new tokens of all of them, G segments, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cache.layout import Indices, Layout
from thoughtbubbles.engine.cache.ledger import Numbers
from thoughtbubbles.engine.cuda.prefill import PrefillStep
from thoughtbubbles.engine.cuda.sampler import DeviceSampler, scored
from thoughtbubbles.engine.cuda.scoring import PromptScorer, Report
from thoughtbubbles.engine.cuda.step import Workspace
from thoughtbubbles.engine.portable.forward import CachedForward, Chunk, Extended, ForkTally, lay_out
from thoughtbubbles.engine.prompt_report import Scores
from thoughtbubbles.engine.scoring import last_logits
from thoughtbubbles.model import Thoughtbubbles, budget

SIZES = (64, 128, 256, 512, 1024, 2048)
"""Most tokens of each captured step. More are prefilled by several steps."""
BATCH_SIZE = 32
"""Most requests of one step."""


class DeviceForward(CachedForward):
    """Computes what `CachedForward` does with kernels, each of which computes all requests."""

    def __init__(
        self,
        model: Thoughtbubbles,
        cache: ForkCache,
        tally: ForkTally,
        *,
        sampler: DeviceSampler | None,
        sizes: Sequence[int] = SIZES,
    ) -> None:
        """Make a step for each of these token counts, ascending, up to as many as all requests together can have.

        `sampler` draws the next token of each request; None if the model averages logits of streams.
        """
        super().__init__(model, cache, tally)
        self._device, self._sampler = model.transformer.wte.weight.device, sampler
        self._batch_size = min(BATCH_SIZE, len(cache.ledger.ids))
        sizes = [n for n in sizes if n == sizes[0] or n < 2 * cache.ledger.ids.size]
        work = Workspace.shared(model, batch_size=self._batch_size, sizes=sizes)
        self._steps = [PrefillStep(model, cache, work, sampler, tokens=n, batch_size=self._batch_size) for n in sizes]
        self.max_prefill_tokens = sizes[-1]
        self._scorer = None
        if sampler:
            self._scorer = PromptScorer(model, vocabulary=sampler.vocabulary, tokens=sizes[-1])

    def prepare(self) -> None:
        """Capture the steps on a CUDA device, or compile them elsewhere."""
        stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        for step in self._steps:
            step.capture(stream) if stream else step.prepare()
            if self._scorer:
                step.report(self._scorer, [(step.tokens, 0)])

    def extend(self, chunks: list[Chunk]) -> Extended:
        """As `CachedForward.extend`; the next step overwrites what it returns."""
        return self.launch(chunks).land()

    def launch(self, chunks: list[Chunk]) -> "Prefill":
        """Launch the chunks. If they take several steps, wait for all but the last."""
        *first, last = self._split(chunks)
        launched: list[_Launched] = []
        parts: list[Extended] = []
        for share in first:
            launched.append(self._launch(share))
            parts.append(_copied(launched[-1].land()))
        launched.append(self._launch(last))
        ends = np.cumsum([len(chunk.ids) for chunk in chunks])
        done = np.cumsum([len(chunk.ids) for share in (*first, last) for chunk in share])
        return Prefill(parts, launched, np.flatnonzero(np.isin(done, ends)).tolist())

    def _split(self, chunks: list[Chunk]) -> Iterator[list[Chunk]]:
        """Yield the chunks of each step, in order, in as few steps as possible. A chunk that does not fit is cut."""
        share: list[Chunk] = []
        most = left = self.max_prefill_tokens
        for chunk in chunks:
            ids = chunk.ids
            while ids:
                if not left or len(share) == self._batch_size:
                    yield share
                    share, left = [], most
                whole = len(ids) <= left
                following = chunk.following if whole else ids[left]
                share.append(replace(chunk, ids=ids[:left], draws=chunk.draws and whole, following=following))
                ids, left = ids[left:], left - len(share[-1].ids)
        yield share

    def _launch(self, chunks: list[Chunk]) -> "_Launched":
        """Launch chunks that fit into one step."""
        layout = Layout.of([len(chunk.ids) for chunk in chunks])
        step = next(step for step in self._steps if step.tokens >= len(layout.group))
        self._write(step, chunks, layout)
        reports = any(chunk.draws and chunk.logprobs is not None for chunk in chunks)
        step.run(scored=len(chunks) if reports else 0)
        report = None
        if self._scorer and any(chunk.num_scored for chunk in chunks):
            report = step.report(self._scorer, [(chunk.num_scored, chunk.prompt_logprobs) for chunk in chunks])
        return _Launched(self, step, chunks, layout, report)

    def land(self, step: PrefillStep, chunks: list[Chunk], layout: Layout) -> Extended:
        """Wait for a step, record it in the cache and the tally, and return what it computed."""
        tally, drawn, counts = step.wait()
        counts = counts[:, : len(layout.group)]
        self._record(chunks, layout, counts, tally.tolist())
        streams = counts[-1].astype(np.int64)
        x, score = step.streams(int(streams.sum()))
        if not self._sampler:
            last = (layout.ends - 1).tolist()
            logits = last_logits(self.model, lay_out(x, score, streams), last, self.packed.head)
            return Extended(x, score, streams, logits)
        logprobs = scored(step.logprobs, [chunk.logprobs if chunk.draws else None for chunk in chunks],
                          self._sampler.vocabulary)  # fmt: skip
        return Extended(x, score, streams, step.logits[: len(chunks)], drawn[: len(chunks)].tolist(), logprobs)

    def _write(self, step: PrefillStep, chunks: list[Chunk], layout: Layout) -> None:
        """Reserve pages for all streams that the chunks may have, and write the inputs of the step."""
        ledger, counts, ends = self.cache.ledger, layout.counts, layout.ends
        rows = np.array([chunk.state.row for chunk in chunks])
        tokens = ledger.tokens[rows]
        self.cache.reserve([chunk.state for chunk in chunks], tokens + counts)
        position = tokens[layout.group] + layout.place
        streams = budget(position + 1, ledger.kappa[rows][layout.group], self.model.config.block_size)
        ids = np.array([i for chunk in chunks for i in chunk.ids])
        step.write(
            lane=self._lanes(chunks),
            ids=ids,
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
            **_scored_columns(chunks, layout, ids),
        )

    def _lanes(self, chunks: list[Chunk]) -> list[int]:
        """Return the lane that draws for each chunk: its request's, or the spare one if no token is to be drawn."""
        spare = self._sampler.spare_lane if self._sampler else -1
        return [chunk.state.row if chunk.draws else spare for chunk in chunks]

    def _record(self, chunks: list[Chunk], layout: Layout, counts: Numbers, tally: list[list[int]]) -> None:
        """Append the tokens to the cache, and add to the tally."""
        for chunk, end, size in zip(chunks, layout.ends.tolist(), layout.counts.tolist(), strict=True):
            before = self.cache.ledger.streams[chunk.state.row, :, None]
            self.cache.extend(chunk.state, chunk.ids, before + counts[:, end - size : end].cumsum(1))
        for layer, (forks, deletions) in zip(self.model.config.fork_layers, tally[1:], strict=True):
            self.tally.forks[layer] += forks
            self.tally.deletions[layer] += deletions


@dataclass(frozen=True)
class _Launched:
    """A launched step."""

    forward: DeviceForward
    step: PrefillStep
    chunks: list[Chunk]
    layout: Layout
    report: Report | None
    """Of the prompts that are scored; it may come later than the rest."""

    def land(self) -> Extended:
        return self.forward.land(self.step, self.chunks, self.layout)

    def scores(self) -> list[Scores | None]:
        return self.report.read() if self.report else [None] * len(self.chunks)


@dataclass(frozen=True)
class Prefill:
    """Launched chunks, of one step or several."""

    parts: list[Extended]
    """The results of all steps but the last."""
    launched: list[_Launched]
    """All steps."""
    ends: list[int]
    """Indices of the steps' chunks that end a launched chunk."""

    def land(self) -> Extended:
        """Wait for the last step, and return the result, which the next step overwrites."""
        last = self.launched[-1].land()
        extended = _joined([*self.parts, last], self.ends) if self.parts else last
        return replace(extended, scores=self._scores()) if any(each.report for each in self.launched) else extended

    def _scores(self) -> list[Scores | None]:
        """Return the scores of each launched chunk."""
        parts = [part for each in self.launched for part in each.scores()]
        starts = [0, *(end + 1 for end in self.ends[:-1])]
        return [_joined_scores(parts[start : end + 1]) for start, end in zip(starts, self.ends, strict=True)]


def _copied(part: Extended) -> Extended:
    """Return a copy, which the next step does not overwrite."""
    return replace(part, x=part.x.clone(), score=part.score.clone(), logits=part.logits.clone())


def _joined(parts: Sequence[Extended], ends: list[int]) -> Extended:
    """Return the joined results of several steps; `ends` are the indices of chunks that end a launched one."""
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


def _joined_scores(parts: Sequence[Scores | None]) -> Scores | None:
    """Return the scores of a chunk that several steps computed, or none if none were wanted."""
    own = [part for part in parts if part is not None]
    return Scores.joined(own) if len(own) > 1 else own[0] if own else None


def _scored_columns(chunks: list[Chunk], layout: Layout, ids: Indices) -> dict[str, NDArray[Any]]:
    """Return the columns of `PrefillInputs` that say which tokens of the chunks are followed by one to score."""
    if all(chunk.prompt_logprobs is None for chunk in chunks):
        return {}
    top = np.array([-1 if chunk.prompt_logprobs is None else chunk.prompt_logprobs for chunk in chunks])[layout.group]
    following = np.array([-1 if chunk.following is None else chunk.following for chunk in chunks])
    target = np.append(ids[1:], -1)
    target[layout.ends - 1] = following
    scored = np.flatnonzero((top >= 0) & (target >= 0))
    return {"scored": scored, "target": target[scored], "top": top[scored]}
