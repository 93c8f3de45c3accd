"""The forward pass of requests without pages: every fork selects again, and what that changes is recomputed.

A stream depends on the streams left of it and on its index in its bubble. So in each segment nothing changes before the
first token whose streams changed. From segment to segment that token only moves to the left. Before the first fork,
after forks that keep every candidate, and under `causal` it is the new token.

Letters: R requests, T tokens that are computed of all of them, S their streams, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby

import torch
from torch import Tensor

from thoughtbubbles.engine.cache.fork_cache import segments
from thoughtbubbles.engine.cache.pages import Segment
from thoughtbubbles.engine.prompt_report import ForkScores
from thoughtbubbles.engine.revising.layers import SegmentLayers
from thoughtbubbles.engine.revising.pieces import Pieces, completed
from thoughtbubbles.engine.revising.state import RevisableSegment, RevisableState
from thoughtbubbles.engine.scoring import last_logits
from thoughtbubbles.model import ForkBias, ForkingBlock, Streams, Thoughtbubbles
from thoughtbubbles.model.forking import fork, gather
from thoughtbubbles.model.interventions import Point, fork_overrides, shift_forks
from thoughtbubbles.model.rotary import fractions
from thoughtbubbles.model.segments import segment_counts
from thoughtbubbles.model.selection import ALWAYS, NEVER, forced_candidates, on_grid, select_causal


@dataclass(frozen=True)
class Revised:
    """What a step computed of one request."""

    logits: Tensor
    """(V,) float32 of its last token."""
    fork_counts: list[int]
    """Streams after the last fork layer of each token computed there, which are the last tokens of the request."""
    streams: int
    """Streams after the last fork layer of all its tokens."""
    forks: list[tuple[Tensor, Tensor]]
    """Token (S,) and cumulative score (S,) of each stream after each fork layer. They outlive the state."""

    def fork_scores(self) -> list[ForkScores]:
        """Return the scores of the same tokens as `fork_counts`."""
        layers = [_scores_by_token(*each, len(self.fork_counts)) for each in self.forks]
        return list(zip(*layers, strict=True)) if layers else [()] * len(self.fork_counts)


@dataclass
class _Revision:
    """One request in a step."""

    state: RevisableState
    tokens: int
    """Number of its tokens."""
    first: int
    """The first token whose streams are computed in the present segment."""
    streams: Streams
    """The streams of the tokens from `first` on."""

    @property
    def computed(self) -> int:
        """Number of tokens whose streams are computed in the present segment."""
        return self.tokens - self.first

    def biases(self, layer: int) -> list[ForkBias]:
        """Return its interventions in the forks that a layer computes."""
        computed = range(self.first, self.tokens)
        return [each for each in self.state.biases if each.layer == layer and each.position in computed]


class RevisingForward:
    """Runs a model for requests without pages, overwriting the state of each where it changes."""

    def __init__(self, model: Thoughtbubbles, layers: SegmentLayers) -> None:
        """`layers` are the model's."""
        self.model = model
        self._layers = layers
        self._segments = segments(model.config)

    def extend(self, states: Sequence[RevisableState], sequences: Sequence[Sequence[int]]) -> list[Revised]:
        """Extend each state, which has a proper prefix of its sequence, to the whole sequence."""
        return completed(self.pieces(states, sequences))

    def pieces(self, states: Sequence[RevisableState], sequences: Sequence[Sequence[int]]) -> Pieces[list[Revised]]:
        """As `extend`, one layer or several at a time. The states are not to be used meanwhile."""
        revisions = [self._begin(state, ids) for state, ids in zip(states, sequences, strict=True)]
        for segment in self._segments:
            if segment.index:
                for revision in revisions:
                    self._fork(segment, revision)
            streams = yield from self._run(segment, revisions)
        return self._finish(revisions, streams)

    def _begin(self, state: RevisableState, ids: Sequence[int]) -> _Revision:
        """Append the new tokens' streams before the first layer."""
        new = torch.tensor([ids[state.tokens :]], device=self.model.transformer.wte.weight.device)
        embedded = self.model.embed(new)
        streams = Streams(embedded.x, embedded.score, embedded.token_index + state.tokens, len(ids))
        state.segments[0].append(streams)
        return _Revision(state, len(ids), state.tokens, streams)

    def _fork(self, into: Segment, revision: _Revision) -> None:
        """Select the streams of a segment among all candidates, and start from the first token that this changes."""
        before, after = revision.state.segments[into.index - 1 : into.index + 1]
        parents, scores = before.parents(revision.tokens)
        embedding, selection = self._forking_block(into.layers.start).fork_embedding, revision.state.selection
        biases = [each for each in revision.state.biases if each.layer == into.layers.start]
        overrides = fork_overrides(biases, parents.token_index)
        if selection.rule == "causal":
            candidate = _extend_causal(revision, parents, scores, after, overrides)
            streams = gather(parents, candidate, scores, embedding)
        else:
            streams, candidate = fork(parents, scores, embedding, selection, overrides=overrides)
        revision.first = after.first_change(streams.token_index, candidate, revision.first)
        after.choose(streams, candidate)
        revision.streams = _from_token(streams, revision.first)

    def _run(self, segment: Segment, revisions: list[_Revision]) -> Pieces[Streams]:
        """Run the segment's layers over the computed streams of all requests, and return these end to end."""
        streams = _end_to_end(revisions)
        token = torch.cat([each.streams.token_index for each in revisions], dim=1)
        positions = token + fractions(streams.token_index, streams.tokens)
        own = [each.state.segments[segment.index] for each in revisions]
        rows = [each.streams.x.shape[1] for each in revisions]
        buffers = [state.buffers(n) for state, n in zip(own, rows, strict=True)]
        yield from self._layers.each(segment, streams.x[0], positions[0], streams.score[0], buffers)
        if segment.forks_after:
            self._keep(segment, streams, own, rows, _biases_end_to_end(revisions, segment.layers.stop))
        return streams

    def _keep(
        self, segment: Segment, streams: Streams, states: list[RevisableSegment], rows: list[int],
        biases: list[ForkBias],
    ) -> None:  # fmt: skip
        """Store in each request's state the candidates of the fork after a segment."""

        def tap(point: Point, value: Tensor) -> Tensor:
            return shift_forks(value, biases, streams.token_index) if point == "fork_logits" else value

        block = self._forking_block(segment.layers.stop)
        scores = block.candidate_scores(streams.x, streams.score, tap).unflatten(1, (-1, 2))
        for each, x, own in zip(states, streams.x.split(rows, dim=1), scores.split(rows, dim=1), strict=True):
            each.keep(x, own)

    def _finish(self, revisions: list[_Revision], streams: Streams) -> list[Revised]:
        """Return the logits of each request's last token, from the streams of the last segment."""
        for each in revisions:
            each.state.tokens = each.tokens
        computed = [each.computed for each in revisions]
        logits = last_logits(self.model, streams, [end - 1 for end in accumulate(computed)], self._layers.head)
        counts = segment_counts(streams.token_index, streams.tokens)[0].split(computed)
        chosen = [each.state.segments for each in revisions]
        return [
            Revised(row, own.tolist(), each[-1].count, [(one.token_index[0], one.score[0]) for one in each[1:]])
            for row, own, each in zip(logits, counts, chosen, strict=True)
        ]

    def _forking_block(self, layer: int) -> ForkingBlock:
        block = self.model.blocks[layer]
        assert isinstance(block, ForkingBlock), "a segment begins with a fork"
        return block


def _extend_causal(
    revision: _Revision, parents: Streams, scores: Tensor, after: RevisableSegment, overrides: Tensor | None
) -> Tensor:
    """Return the survivors (1,S') of candidates with `scores` (1,2S) under `causal`: those in `after`, and new ones."""
    first, tokens, selection = revision.first, revision.tokens, revision.state.selection
    start = 2 * int(torch.searchsorted(parents.token_index[0], first))
    token_index, grid = parents.token_index.repeat_interleave(2, dim=1), on_grid(scores)
    absent = forced_candidates(token_index, tokens)
    prior = grid
    if overrides is not None:
        prior, absent = prior.masked_fill(overrides > 0, ALWAYS), absent | (overrides < 0)
        overrides = overrides[:, start:]
    lengths = torch.arange(first + 1, tokens + 1, device=grid.device)
    keep, _ = select_causal(
        grid[:, start:],
        token_index[:, start:] - first,
        (selection.budget(lengths) - lengths)[None],
        prior.masked_fill(absent, NEVER)[:, :start],
        torch.tensor([after.count - first], device=grid.device),
        overrides=overrides,
    )
    return torch.cat((after.candidate, keep.nonzero()[None, :, 1] + start), dim=1)


def _biases_end_to_end(revisions: list[_Revision], layer: int) -> list[ForkBias]:
    """Return the interventions in a layer's forks, their tokens numbered as by `_end_to_end`."""
    ends = accumulate(each.computed for each in revisions)
    return [
        replace(bias, position=bias.position + end - each.tokens)
        for each, end in zip(revisions, ends, strict=True)
        for bias in each.biases(layer)
    ]


def _scores_by_token(token_index: Tensor, score: Tensor, tokens: int) -> list[tuple[float, ...]]:
    """Return P of the streams of each of the last `tokens` tokens, from the tokens and scores of all streams (S,)."""
    start = int(torch.searchsorted(token_index, int(token_index[-1]) + 1 - tokens))
    both = zip(token_index[start:].tolist(), score[start:].exp().tolist(), strict=True)
    return [tuple(p for _, p in own) for _, own in groupby(both, key=lambda each: each[0])]


def _from_token(streams: Streams, first: int) -> Streams:
    """Return the streams of a token and of all after it."""
    start = int(torch.searchsorted(streams.token_index[0], first))
    return Streams(streams.x[:, start:], streams.score[:, start:], streams.token_index[:, start:], streams.tokens)


def _end_to_end(revisions: list[_Revision]) -> Streams:
    """Return the computed streams of all requests as one row (B = 1), their tokens numbered from 0."""
    ends = accumulate(each.computed for each in revisions)
    number = [each.streams.token_index + (end - each.tokens) for each, end in zip(revisions, ends, strict=True)]
    x = torch.cat([each.streams.x for each in revisions], dim=1)
    score = torch.cat([each.streams.score for each in revisions], dim=1)
    return Streams(x, score, torch.cat(number, dim=1), sum(each.computed for each in revisions))
