"""Grouping of requests for attention: by number of new streams, and while their keys and values are few.

Letters: R requests, S new streams of all of them; G requests of a group, M new streams of one, K keys of the longest.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import add

import numpy as np
import torch
from torch import Tensor

from thoughtbubbles.engine.cache.layout import Indices

KEYS_AT_ONCE = 2048
"""Most keys of a group, padding included, so that gathered keys are still in the processor's cache when they are used.
A request that has more is a group of its own."""

FEW_STREAMS = 8
"""Requests with at most this many new streams attend together; the last stream of those with fewer is repeated."""


@dataclass(frozen=True)
class Group:
    """Requests whose new streams attend in one operation."""

    requests: list[int]
    """Indices of the G requests among R."""
    new: int
    """M, the most new streams of one."""
    keys: int
    """K"""
    fresh: bool
    """Whether they attend to their new streams only."""
    rows: Tensor | None
    """(G·M,) indices of their new streams among all S, the last one repeated if a request has fewer than M; None if
    they are all S in order."""
    mask: Tensor | None
    """(G,1,M,K) summand of the attention scores, 0 or -inf; None if attention is causal or sees all keys."""

    def own(self, heads: Tensor) -> Tensor:
        """Return the group's heads (G,N,M,H) of all (S,N,H)."""
        own = heads if self.rows is None else heads.index_select(0, self.rows)
        return own.view(len(self.requests), self.new, *own.shape[1:]).transpose(1, 2)


class Masks:
    """Makes masks on the device and with the dtype of a tensor. A row is a window of one vector: zeros, then -inf."""

    def __init__(self, like: Tensor) -> None:
        self.device = like.device
        self._vector = like.new_empty(0)

    def of(self, visible: Indices, keys: int) -> Tensor:
        """Return the mask (G,1,M,K) of new streams that see the first `visible` (G,M) of K keys."""
        most = len(self._vector) // 2
        if most < keys:
            most = 2 * keys
            self._vector = torch.cat((self._vector.new_zeros(most), self._vector.new_full((most,), -torch.inf)))
        windows = self._vector.as_strided((most + 1, keys), (1, 1))
        rows = torch.from_numpy(most - visible.ravel()).to(self.device)
        return windows.index_select(0, rows).view(len(visible), 1, -1, keys)


def groups(cached: Sequence[int], new: Sequence[int], masks: Masks) -> list[Group]:
    """Return the groups of R requests with `cached` streams before the step, and `new` ones in it."""
    alike: defaultdict[tuple[int, bool], list[int]] = defaultdict(list)
    for request, (before, count) in enumerate(zip(cached, new, strict=True)):
        fresh = before == 0
        alike[count if fresh else max(count, FEW_STREAMS), fresh].append(request)
    parts = [part for some in alike.values() for part in _split(some, cached)]
    ends = list(accumulate(new))
    return [_group(part, cached, new, ends, masks) for part in parts]


def _split(requests: list[int], cached: Sequence[int]) -> Iterator[list[int]]:
    """Yield parts of these requests with few keys, at most half of which are padding."""
    part: list[int] = []
    for request in sorted(requests, key=cached.__getitem__, reverse=True):
        if part and (cached[part[0]] * (len(part) + 1) > KEYS_AT_ONCE or cached[part[0]] > 2 * cached[request]):
            yield sorted(part)
            part = []
        part.append(request)
    yield sorted(part)


def _group(requests: list[int], cached: Sequence[int], new: Sequence[int], ends: list[int], masks: Masks) -> Group:
    before, counts = [cached[i] for i in requests], [new[i] for i in requests]
    totals, most = list(map(add, before, counts)), max(counts)
    keys, fresh = max(totals), not any(before)
    in_order = len(requests) == len(ends) and min(counts) == most
    unmasked = fresh or (most == 1 and min(totals) == keys)
    if in_order and unmasked:
        return Group(requests, most, keys, fresh, None, None)
    place = np.minimum(np.arange(most), np.array(counts)[:, None] - 1)
    starts = np.array([ends[i] - new[i] for i in requests])
    rows = None if in_order else torch.from_numpy((starts[:, None] + place).ravel()).to(masks.device)
    mask = None if unmasked else masks.of(np.array(before)[:, None] + place + 1, keys)
    return Group(requests, most, keys, fresh, rows, mask)
