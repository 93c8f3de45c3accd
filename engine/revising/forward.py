"""The forward pass under the rules that revise: every fork selects again, and what that changes is recomputed.

A stream depends on the streams left of it and on its index in its bubble. So in each segment nothing changes before the
first token whose streams changed. From segment to segment that token only moves to the left. Before the first fork, and
after forks that keep every candidate, it is the new token.

Letters: R requests, T tokens that are computed of all of them, S their streams, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from thoughtbubbles.engine.cache.fork_cache import segments
from thoughtbubbles.engine.cache.pages import Segment
from thoughtbubbles.engine.portable.block import Attend
from thoughtbubbles.engine.portable.layers import PackedModel
from thoughtbubbles.engine.revising.state import RevisableSegment, RevisableState
from thoughtbubbles.engine.scoring import last_logits
from thoughtbubbles.model import ForkingBlock, Streams, Thoughtbubbles
from thoughtbubbles.model.forking import fork
from thoughtbubbles.model.rotary import fractions
from thoughtbubbles.model.segments import segment_counts


@dataclass(frozen=True)
class Revised:
    """What a step computed of one request."""

    logits: Tensor
    """(V,) float32 of its last token."""
    fork_counts: list[int]
    """Streams after the last fork layer of each token computed there, which are the last tokens of the request."""
    streams: int
    """Streams after the last fork layer of all its tokens."""


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


class RevisingForward:
    """Runs a model under `dynamic` and `fixed`, overwriting the state of each request where it changes."""

    def __init__(self, model: Thoughtbubbles, packed: PackedModel) -> None:
        """`packed` has the model's layers."""
        self.model = model
        self._packed = packed
        self._segments = segments(model.config)

    def extend(self, states: Sequence[RevisableState], sequences: Sequence[Sequence[int]]) -> list[Revised]:
        """Extend each state, which has a proper prefix of its sequence, to the whole sequence."""
        revisions = [self._begin(state, ids) for state, ids in zip(states, sequences, strict=True)]
        for segment in self._segments:
            if segment.index:
                for revision in revisions:
                    self._fork(segment, revision)
            streams = self._run(segment, revisions)
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
        embedding = self._forking_block(into.layers.start).fork_embedding
        streams, candidate = fork(parents, scores, embedding, revision.state.selection)
        revision.first = after.first_change(streams.token_index, candidate, revision.first)
        after.choose(streams, candidate)
        revision.streams = _from_token(streams, revision.first)

    def _run(self, segment: Segment, revisions: list[_Revision]) -> Streams:
        """Run the segment's layers over the computed streams of all requests, and return these end to end."""
        streams = _end_to_end(revisions)
        token = torch.cat([each.streams.token_index for each in revisions], dim=1)
        positions = token + fractions(streams.token_index, streams.tokens)
        own = [each.state.segments[segment.index] for each in revisions]
        rows = [each.streams.x.shape[1] for each in revisions]
        attend = partial(_attention, own, rows)
        self._packed.run(segment.layers, streams.x[0], positions[0], streams.score[0], attend)
        if segment.forks_after:
            self._keep(segment, streams, own, rows)
        return streams

    def _keep(self, segment: Segment, streams: Streams, states: list[RevisableSegment], rows: list[int]) -> None:
        """Store in each request's state the candidates of the fork after a segment."""
        block = self._forking_block(segment.layers.stop)
        scores = block.candidate_scores(streams.x, streams.score).unflatten(1, (-1, 2))
        for each, x, own in zip(states, streams.x.split(rows, dim=1), scores.split(rows, dim=1), strict=True):
            each.keep(x, own)

    def _finish(self, revisions: list[_Revision], streams: Streams) -> list[Revised]:
        """Return the logits of each request's last token, from the streams of the last segment."""
        for each in revisions:
            each.state.tokens = each.tokens
        computed = [each.computed for each in revisions]
        logits = last_logits(self.model, streams, [end - 1 for end in accumulate(computed)], self._packed.head)
        counts = segment_counts(streams.token_index, streams.tokens)[0].split(computed)
        totals = [each.state.segments[-1].count for each in revisions]
        return [Revised(row, own.tolist(), n) for row, own, n in zip(logits, counts, totals, strict=True)]

    def _forking_block(self, layer: int) -> ForkingBlock:
        block = self.model.blocks[layer]
        assert isinstance(block, ForkingBlock), "a segment begins with a fork"
        return block


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


def _attention(states: list[RevisableSegment], rows: list[int], layer: int) -> Attend:
    """Return the attention of one layer: computed streams of each request to all of its streams."""

    def attend(heads: Tensor) -> Tensor:
        each = heads.to(states[0].keys.dtype).permute(1, 2, 0, 3)[:, None].split(rows, dim=3)  # (3,1,N,M,H)
        parts = [segment.attend(layer, *qkv) for segment, qkv in zip(states, each, strict=True)]
        return torch.cat(parts, dim=2).transpose(1, 2).flatten(2)[0]

    return attend
