"""Prefill on a device: the forward pass of new tokens in captured steps, during which the host does not wait.

Letters: R requests, T new tokens of all of them, G segments, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cache.layout import Indices, Layout
from thoughtbubbles.engine.cache.ledger import Numbers
from thoughtbubbles.engine.cuda.compiling import launch_compiled
from thoughtbubbles.engine.cuda.prefill import PrefillStep
from thoughtbubbles.engine.cuda.sampler import DeviceSampler, scored
from thoughtbubbles.engine.cuda.scoring import PromptScorer, Report
from thoughtbubbles.engine.cuda.step import Workspace, prepare_steps
from thoughtbubbles.engine.lookup import GUESSING, Guessing
from thoughtbubbles.engine.portable.forward import CachedForward, Chunk, Extended, ForkTally, lay_out
from thoughtbubbles.engine.prompt_report import Scored, Scores
from thoughtbubbles.engine.scoring import last_logits
from thoughtbubbles.model import Thoughtbubbles, budget

SIZES = (64, 128, 256, 512, 1024, 1536, 2048, 4096, 6144, 8192)
"""Most tokens of each captured step. More are prefilled by several steps."""
TWICE = (2048, 4096)
"""Sizes of which there are two steps, so that one can be launched while the device computes another."""
MOST_BESIDE = 2048
"""Most tokens of a step beside which others decode."""
BATCH_SIZE = 64
"""Most requests of one step, and most tokens of those with drafts."""
DEVICE_GUESSING = Guessing(match=6, first_match=12, pays=4, gradual=False, least=4, least_together=8)
"""A step with a draft is waited for and takes as long as a few decode steps, whatever it guesses: so guesses are made
where some will very likely be right, and then as many as there may be."""
_Tokens = tuple[list[int], list[Scored | None]]
"""Tokens that were drawn, and their log-probabilities."""


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
        guesses: int = 0,
    ) -> None:
        """Make a step for each of these token counts, ascending, up to as many as all requests together can have.

        `sampler` draws the next token of each request; None if the model averages logits of streams. A request has at
        most so many `guesses` in a step.
        """
        super().__init__(model, cache, tally)
        self._device, self._sampler = model.transformer.wte.weight.device, sampler
        self._batch_size = min(BATCH_SIZE, len(cache.ledger.ids) * (1 + guesses))
        sizes = [n for n in sizes if n == sizes[0] or n < 2 * cache.ledger.ids.size]
        work = Workspace.packed(model, batch_size=self._batch_size, sizes=sizes)
        self._steps = [PrefillStep(model, cache, work, sampler, tokens=n, batch_size=self._batch_size)
                       for n in sizes for _ in range(1 + (n in TWICE))]  # fmt: skip
        self._rows = np.array([step.rows for step in self._steps])
        """(S,G) the most streams of each of the S steps; no step has fewer than the one before."""
        self._flying: dict[PrefillStep, _Launched] = {}
        """What is to be landed."""
        self.max_prefill_tokens, self.max_lone_prefill_tokens = min(MOST_BESIDE, sizes[-1]), sizes[-1]
        # A draft is never cut: so many tokens fit into a step whatever streams they get.
        fitting = (self._steps[-1].rows >> np.arange(len(cache.segments))).min()
        self.guessing = replace(
            DEVICE_GUESSING if sampler else GUESSING, most_tokens=min(self._batch_size, int(fitting))
        )
        self.scorer = None
        if sampler:
            self.scorer = PromptScorer(model, vocabulary=sampler.vocabulary, tokens=sizes[-1])

    def prepare(self) -> None:
        """Capture the steps on a CUDA device, or compile them elsewhere."""
        prepare_steps(self._steps, self._device)
        if self.scorer:
            launch_compiled(partial(self._report_all, self.scorer), self._device)

    def _report_all(self, scorer: PromptScorer) -> None:
        for step in self._steps:
            step.report(scorer, [(step.tokens, 0)])

    def extend(self, chunks: list[Chunk]) -> Extended:
        """As `CachedForward.extend`; the next step overwrites what it returns."""
        self.forget()
        prefill = self.launch(chunks, lambda: False)
        extended = prefill.land()
        prefill.launched[-1].drawn()  # the steps before are settled
        return extended

    def forget(self) -> None:
        """Wait for steps that were launched and that nobody will land, since what was to land them was interrupted."""
        for step in self._flying:
            step.wait()
        self._flying.clear()

    def launch(self, chunks: list[Chunk], prepare_draw: Callable[[], bool]) -> "Prefill":
        """Launch the chunks. If they take several steps, wait for all but the last.

        `prepare_draw` is called before each draw, while the device computes, and returns whether it is `plain`, as in
        `DeviceSampler.draw`. More may be launched before the result is landed, which then has no streams (`Extended.x`)
        of meaning.
        """
        share, rest = self._take(chunks)
        launched: list[_Launched] = []
        ends = share.ends
        while rest:
            launched.append(self._launch(share, prepare_draw))
            launched[-1].settle()
            share, rest = self._take(rest)
            ends = [*ends, *share.ends]
        launched.append(self._launch(share, prepare_draw))
        return Prefill(launched, np.flatnonzero(ends).tolist())

    def _take(self, chunks: list[Chunk]) -> tuple["_Share", list[Chunk]]:
        """Return as many chunks as one step computes, in order, and the others. A chunk that does not fit is cut."""
        tokens, room = [len(chunk.ids) for chunk in chunks], self._steps[-1].rows
        gained = self.cache.most_gained([chunk.state for chunk in chunks], tokens)
        num_draws = sum(chunk.num_draws for chunk in chunks)
        if num_draws <= self._batch_size and (gained.sum(0) <= room).all():
            return _Share(chunks, gained, [True] * num_draws), []
        slots = np.cumsum([chunk.num_draws for chunk in chunks])
        offered = chunks[: int((slots <= self._batch_size).sum())]
        streams = gained[: len(offered)].cumsum(0)
        fitting = int((streams <= room).all(1).sum())
        share, rest = chunks[:fitting], chunks[fitting:]
        most = streams[fitting - 1] if fitting else np.zeros_like(room)
        ends = [True] * sum(chunk.num_draws for chunk in share)
        if fitting < len(offered) and not rest[0].guesses:
            cut = rest[0]
            by_token = self.cache.most_gained([cut.state] * len(cut.ids), np.arange(1, len(cut.ids) + 1))
            if n := int((most + by_token <= room).all(1).sum()):
                share.append(cut._replace(ids=cut.ids[:n], draws=False, following=cut.ids[n]))
                rest[0] = cut._replace(ids=cut.ids[n:])
                return _Share(share, np.vstack((gained[:fitting], by_token[n - 1])), [*ends, False]), rest
        return _Share(share, gained[:fitting], ends), rest

    def _launch(self, share: "_Share", prepare_draw: Callable[[], bool]) -> "_Launched":
        """Launch chunks that fit into one step."""
        chunks = share.chunks
        layout = Layout.of([len(chunk.ids) for chunk in chunks])
        ids = np.fromiter(chain.from_iterable(chunk.ids for chunk in chunks), np.int32, count=layout.ends[-1])
        step = self._idle_step(share.gained.sum(0))
        self.cache.allocate([chunk.state for chunk in chunks], share.gained)
        self._write(step, chunks, layout, ids)
        reports = any(chunk.draws and chunk.logprobs is not None for chunk in chunks)
        step.run()
        step.draw(plain=prepare_draw(), scored=sum(chunk.num_draws for chunk in chunks) if reports else 0)
        report = None
        if self.scorer and any(chunk.num_scored for chunk in chunks):
            report = step.report(self.scorer, [(chunk.num_scored, chunk.prompt_logprobs) for chunk in _by_draw(chunks)])
        self.cache.write_ids([chunk.state for chunk in chunks], layout, ids)  # while the device computes
        self._flying[step] = _Launched(self, step, chunks, layout, report)
        return self._flying[step]

    def _idle_step(self, streams: Indices) -> PrefillStep:
        """Return the smallest step that has room for so many streams (G,), and that nobody is still to land."""
        enough = self._steps[int((streams <= self._rows).all(1).argmax()) :]
        idle = next((step for step in enough if step not in self._flying), None)
        if idle is None:
            self._flying[enough[0]].settle()
        return idle or enough[0]

    def land(self, step: PrefillStep, chunks: list[Chunk], layout: Layout) -> Extended:
        """Wait for the streams of a step, record them in the cache and the tally, and return what it computes."""
        tally, counts = step.wait_for_streams()
        counts = counts[:, : len(layout.group)]
        self._record(chunks, layout, counts, tally.tolist())
        streams = counts[-1].astype(np.int64)
        x, score = step.streams(int(streams.sum()))
        if not self._sampler:
            last = _Slots.of(chunks, layout).last.tolist()
            logits = last_logits(self.model, lay_out(x, score, streams), last, self.packed.head)
            return Extended(x, score, streams, logits)
        return Extended(x, score, streams, step.logits[: sum(chunk.num_draws for chunk in chunks)])

    def drawn(self, step: PrefillStep, chunks: list[Chunk]) -> _Tokens:
        """Wait for a step that was landed, and return the token of each draw and its log-probability, where requested.

        A token is -1 where logits are NaN or infinite, and any if none was to be drawn.
        """
        tokens = step.wait()
        del self._flying[step]
        if not self._sampler:
            return [], []
        tops = [chunk.logprobs if chunk.draws else None for chunk in _by_draw(chunks)]
        return tokens[: len(tops)].tolist(), scored(step.logprobs, tops, self._sampler.vocabulary)

    def _write(self, step: PrefillStep, chunks: list[Chunk], layout: Layout, ids: Numbers) -> None:
        """Write the inputs of a step. The chunks have pages for all streams that they may have."""
        ledger, counts, ends = self.cache.ledger, layout.counts, layout.ends
        rows, slots = np.array([chunk.state.row for chunk in chunks]), _Slots.of(chunks, layout)
        tokens = ledger.tokens[rows]
        position = tokens[layout.group] + layout.place
        until = position + 1
        streams = budget(until, ledger.kappa[rows][layout.group], self.model.config.block_size)
        step.write(
            lane=self._lanes(chunks),
            ids=ids,
            request=slots.first[layout.group],
            position=position,
            fork_budget=streams - until,
            first=slots.spread(ends - counts),
            last=slots.last,
            count=slots.spread(counts),
            length=slots.spread(tokens + counts),
            streams=slots.spread(ledger.streams.take(rows, 0)),
            table=slots.spread(ledger.table.take(rows, 0)),
            live=[len(position)],
            **_scored_columns(chunks, layout, ids),
        )

    def _lanes(self, chunks: list[Chunk]) -> list[int]:
        """Return the lane that draws in each slot: the request's, or the spare one if no token is to be drawn."""
        spare = self._sampler.spare_lane if self._sampler else -1
        return [lane for chunk in chunks for lane in chunk.lanes or [chunk.state.row if chunk.draws else spare]]

    def _record(self, chunks: list[Chunk], layout: Layout, counts: Numbers, tally: list[list[int]]) -> None:
        """Append the tokens to the cache, and add to the tally."""
        self.cache.extend_all([chunk.state for chunk in chunks], layout, counts, [chunk.guesses for chunk in chunks])
        for layer, (forks, deletions) in zip(self.model.config.fork_layers, tally[1:], strict=True):
            self.tally.forks[layer] += forks
            self.tally.deletions[layer] += deletions


@dataclass(frozen=True)
class _Share:
    """The chunks of one step."""

    chunks: list[Chunk]
    gained: Indices
    """(R,G) the most streams that each of them may have."""
    ends: list[bool]
    """For each of their draws, whether it is one of a chunk that was to be launched; the last may be the beginning of
    such a chunk, after which nothing is drawn."""


@dataclass(frozen=True)
class _Slots:
    """The batch slots of a step: one of each chunk, and behind it one of each of its guesses, where only the draw is.

    Letters: R chunks, B slots of all of them.
    """

    first: Indices
    """(R,) the slot of each chunk."""
    last: Indices
    """(B,) the token after which each slot draws."""

    @classmethod
    def of(cls, chunks: Sequence[Chunk], layout: Layout) -> "_Slots":
        if not any(chunk.guesses for chunk in chunks):
            return cls(np.arange(len(chunks)), layout.ends - 1)
        draws = np.array([chunk.num_draws for chunk in chunks])
        last = np.flatnonzero(layout.place >= (layout.counts - draws)[layout.group])
        return cls(draws.cumsum() - draws, last)

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return what is true of the chunks (R,…) for all slots (B,…): zeros for those of guesses."""
        if len(self.first) == len(self.last):
            return values
        spread = np.zeros((len(self.last), *values.shape[1:]), values.dtype)
        spread[self.first] = values
        return spread


@dataclass
class _Launched:
    """A launched step."""

    forward: DeviceForward
    step: PrefillStep
    chunks: list[Chunk]
    layout: Layout
    report: Report | None
    """Of the prompts that are scored; it may come later than the rest."""
    settled: tuple[Extended, _Tokens] | None = None
    """What it computed and drew, if the step was needed for others before this was landed."""

    def land(self) -> Extended:
        return self.settled[0] if self.settled else self.forward.land(self.step, self.chunks, self.layout)

    def drawn(self) -> _Tokens:
        return self.settled[1] if self.settled else self.forward.drawn(self.step, self.chunks)

    def settle(self) -> None:
        self.settled = _copied(self.land()), self.drawn()

    def scores(self) -> list[Scores | None]:
        """Wait, and return the scores of each slot; those of a prompt without a token to score are empty."""
        if self.report:
            return self.report.read()
        return [None if chunk.prompt_logprobs is None else Scores() for chunk in _by_draw(self.chunks)]


@dataclass(frozen=True)
class Prefill:
    """Launched chunks, of one step or several."""

    launched: list[_Launched]
    """All steps, settled but for the last."""
    ends: list[int]
    """Indices of the steps' draws that are of a launched chunk, and not of the beginning of one."""

    def land(self) -> Extended:
        """Wait for the streams of the last step, and return the result, which the next step overwrites."""
        parts = [each.land() for each in self.launched]
        return _joined(parts, self.ends) if len(parts) > 1 else parts[0]

    def drawn(self) -> _Tokens:
        """Wait for the last step, once it was landed. Return the tokens drawn and their log-probabilities."""
        parts = [each.drawn() for each in self.launched]
        if len(parts) == 1:
            return parts[0]
        tokens, logprobs = ([each for part in column for each in part] for column in zip(*parts, strict=True))
        return [tokens[i] for i in self.ends], [logprobs[i] for i in self.ends]

    def scores(self) -> list[Scores | None]:
        """Wait, and return the scores of each launched chunk, and after it None for each of its guesses."""
        if len(self.launched) == 1:
            return self.launched[-1].scores()
        parts = [part for each in self.launched for part in each.scores()]
        starts = [0, *(end + 1 for end in self.ends[:-1])]
        return [_joined_scores(parts[start : end + 1]) for start, end in zip(starts, self.ends, strict=True)]


def _by_draw(chunks: Sequence[Chunk]) -> Iterator[Chunk]:
    """Return each chunk as often as tokens are drawn. A chunk with guesses has no prompt to score."""
    return (chunk for chunk in chunks for _ in range(chunk.num_draws))


def _copied(part: Extended) -> Extended:
    """Return a copy, which the next step does not overwrite."""
    return replace(part, x=part.x.clone(), score=part.score.clone(), logits=part.logits.clone())


def _joined(parts: Sequence[Extended], ends: list[int]) -> Extended:
    """Return the joined results of several steps; `ends` as in `Prefill`."""
    return Extended(
        torch.cat([part.x for part in parts]),
        torch.cat([part.score for part in parts]),
        np.concatenate([part.counts for part in parts]),
        torch.cat([part.logits for part in parts])[ends],
    )


def _joined_scores(parts: Sequence[Scores | None]) -> Scores | None:
    """Return the scores of a chunk that several steps computed, or none if none were wanted."""
    own = [part for part in parts if part is not None]
    return Scores.joined(own) if len(own) > 1 else own[0] if own else None


def _scored_columns(chunks: list[Chunk], layout: Layout, ids: Numbers) -> dict[str, NDArray[Any]]:
    """Return the columns of `PrefillInputs` that say which tokens of the chunks are followed by one to score."""
    if all(chunk.prompt_logprobs is None for chunk in chunks):
        return {}
    top = np.array([-1 if chunk.prompt_logprobs is None else chunk.prompt_logprobs for chunk in chunks])[layout.group]
    following = np.array([-1 if chunk.following is None else chunk.following for chunk in chunks])
    target = np.append(ids[1:], -1)
    target[layout.ends - 1] = following
    scored = np.flatnonzero((top >= 0) & (target >= 0))
    return {"scored": scored, "target": target[scored], "top": top[scored]}
