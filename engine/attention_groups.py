"""Which requests attend together: those with as many new streams, while their keys and values are few.

Letters: R requests, S new streams of all of them; G requests of a group, M new streams of each, K keys of the longest.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.layout import Indices

KEYS_AT_ONCE = 2048
"""Most keys of a group, the shorter requests' padded: what is gathered should be in the processor's cache when it is
used. A request that has more is a group of its own."""


@dataclass(frozen=True)
class Group:
    """Requests whose new streams attend in one operation."""

    requests: list[int]
    """Which G of the R."""
    new: int
    """M"""
    keys: int
    """K"""
    fresh: bool
    """Whether they attend to nothing but their new streams."""
    rows: Tensor | None
    """(G·M,) where these are among all S; None where they are all of them, in order."""
    mask: Tensor | None
    """(G,1,M,K) what is added to each new stream's score of each key, 0 or -inf; None where that is causal, or 0."""

    def own(self, heads: Tensor) -> Tensor:
        """(G,N,M,H) of (S,N,H)."""
        own = heads if self.rows is None else heads.index_select(0, self.rows)
        return own.view(len(self.requests), self.new, *own.shape[1:]).transpose(1, 2)


class Masks:
    """Makes masks on the device and in the type of a tensor. A row is a window of one vector: zeros, and then -inf."""

    def __init__(self, like: Tensor) -> None:
        self.device = like.device
        self._vector = like.new_empty(0)

    def of(self, visible: Indices, keys: int) -> Tensor:
        """(G,1,M,K), where new streams see the first `visible` (G,M) of K keys."""
        most = len(self._vector) // 2
        if most < keys:
            most = 2 * keys
            self._vector = torch.cat((self._vector.new_zeros(most), self._vector.new_full((most,), -torch.inf)))
        windows = self._vector.as_strided((most + 1, keys), (1, 1))
        rows = torch.from_numpy(most - visible.ravel()).to(self.device)
        return windows.index_select(0, rows).view(len(visible), 1, -1, keys)


def groups(held: Sequence[int], new: Sequence[int], masks: Masks) -> list[Group]:
    """The groups of R requests that held so many streams and get so many new ones."""
    alike: defaultdict[tuple[int, bool], list[int]] = defaultdict(list)
    for request, (before, count) in enumerate(zip(held, new, strict=True)):
        alike[count, before == 0].append(request)
    parts = [part for some in alike.values() for part in _split(some, held)]
    ends = np.cumsum(new)
    return [_group(part, np.array([held[i] for i in part]), new[part[0]], ends, masks) for part in parts]


def _split(requests: list[int], held: Sequence[int]) -> Iterator[list[int]]:
    """Parts of these requests in which the keys, with padding, are few and at least half of them no padding."""
    part: list[int] = []
    for request in sorted(requests, key=held.__getitem__, reverse=True):
        if part and (held[part[0]] * (len(part) + 1) > KEYS_AT_ONCE or held[part[0]] > 2 * held[request]):
            yield sorted(part)
            part = []
        part.append(request)
    yield sorted(part)


def _group(requests: list[int], held: Indices, new: int, ends: Indices, masks: Masks) -> Group:
    rows = None
    if len(requests) < len(ends):
        rows = torch.from_numpy((ends[requests, None] + np.arange(-new, 0)).ravel()).to(masks.device)
    visible = held[:, None] + np.arange(1, new + 1)
    keys = int(visible[:, -1].max())
    fresh, all_seen = not held.any(), bool((visible == keys).all())
    return Group(requests, new, keys, fresh, rows, None if fresh or all_seen else masks.of(visible, keys))
