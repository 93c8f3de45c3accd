"""The state of a request without pages: its streams as they were last selected.

Under `dynamic` and `fixed` a later token may remove or restore a fork of an earlier one, and an intervention changes
the forks of one request alone. So a state is not shared between requests and has no pages: it is overwritten in place,
from the first token whose streams changed.

Letters: S streams of one segment, M of them computed, N heads, H head width, D model width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from thoughtbubbles.engine.cache.buffers import Buffers
from thoughtbubbles.engine.cache.fork_cache import segments
from thoughtbubbles.engine.cache.pages import Segment
from thoughtbubbles.model import ForkBias, ModelConfig, Selection, Streams


class RevisableSegment:
    """The streams of one request in one segment, in order, in buffers for as many as it may have."""

    def __init__(self, config: ModelConfig, segment: Segment, capacity: int, like: Tensor) -> None:
        shape = (len(segment.layers), config.n_head, capacity, config.head_width)
        parents = capacity if segment.forks_after else 0
        self.segment = segment
        self.keys = like.new_empty(shape)
        self.values = like.new_empty(shape)
        self.x = like.new_empty((1, parents, config.n_embd))
        """(1,S,D) after the segment's layers, if a fork follows."""
        self.candidate_scores = torch.empty((1, parents, 2), device=like.device)
        """(1,S,2) of the two candidates that each stream makes at that fork, deleted ones included."""
        self.token_index = torch.empty((1, 0), dtype=torch.int64, device=like.device)
        """(1,S)"""
        self.score = torch.empty((1, 0), device=like.device)
        """(1,S)"""
        self.candidate = self.token_index
        """(1,S) index of each stream among the candidates of the segment before."""

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(each.nbytes for each in (self.keys, self.values, self.x, self.candidate_scores))

    @property
    def count(self) -> int:
        """S."""
        return self.token_index.shape[1]

    def first_change(self, token_index: Tensor, candidate: Tensor, first: int) -> int:
        """Return the first token whose survivors differ from the present ones, at most `first`; candidate (1,S)."""
        both = min(self.count, token_index.shape[1])
        differs = (candidate[0, :both] != self.candidate[0, :both]).nonzero()
        return min(first, int(token_index[0, differs[0]])) if len(differs) else first

    def append(self, streams: Streams) -> None:
        """Append the streams of new tokens."""
        self.token_index = torch.cat((self.token_index, streams.token_index), dim=1)
        self.score = torch.cat((self.score, streams.score), dim=1)

    def choose(self, streams: Streams, candidate: Tensor) -> None:
        """Replace the selection. The layers and `keep` then store what is computed of the streams that changed."""
        self.token_index, self.score, self.candidate = streams.token_index, streams.score, candidate

    def buffers(self, computed: int) -> Buffers:
        """Return where keys and values are, of which the `computed` rightmost streams lack theirs."""
        return Buffers(
            segment=self.segment, keys=self.keys, values=self.values, streams=self.count, computed=computed
        )  # fmt: skip

    def keep(self, x: Tensor, candidate_scores: Tensor) -> None:
        """Store the M rightmost streams after the layers (1,M,D), and the scores of their candidates (1,M,2)."""
        changed = slice(self.count - x.shape[1], self.count)
        self.x[:, changed] = x
        self.candidate_scores[:, changed] = candidate_scores

    def parents(self, tokens: int) -> tuple[Streams, Tensor]:
        """Return the streams of all `tokens` before the next fork, and the scores (1,2S) of their candidates."""
        scores = self.candidate_scores[:, : self.count].flatten(1)
        return Streams(self.x[:, : self.count], self.score, self.token_index, tokens), scores


class RevisableState:
    """The state of one request, segment by segment."""

    def __init__(
        self, config: ModelConfig, selection: Selection, max_tokens: int, like: Tensor, biases: Sequence[ForkBias] = ()
    ) -> None:
        """Allocate buffers for `max_tokens` tokens, on the device and with the dtype of `like`."""
        capacities = _capacities(config, selection, max_tokens, biases)
        self.selection = selection
        self.biases = biases
        """The interventions in its forks."""
        self.segments = [
            RevisableSegment(config, s, n, like) for s, n in zip(segments(config), capacities, strict=True)
        ]
        self.tokens = 0
        """Tokens computed."""

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(segment.nbytes for segment in self.segments)


def _capacities(config: ModelConfig, selection: Selection, tokens: int, biases: Sequence[ForkBias]) -> list[int]:
    """Return `most_streams` of each segment and, beyond the budget, the forks that interventions force."""
    streams = [tokens * config.copies]
    for i, layer in enumerate(config.fork_layers):
        forced = sum(each.layer == layer and each.select == "always" for each in biases) << i
        streams.append(min(2 * streams[-1], selection.capacity(tokens, streams[-1]) + forced))
    return streams
