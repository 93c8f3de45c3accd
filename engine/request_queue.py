"""The queue of waiting requests, and how many streams they need. No torch here."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from thoughtbubbles.engine.cache.fork_cache import most_streams
from thoughtbubbles.engine.request import Request
from thoughtbubbles.model import ModelConfig


class RequestQueue:
    """Waiting requests, first come, first served. Measured in streams, since prompts differ in tokens and forks."""

    def __init__(self, config: ModelConfig) -> None:
        self.streams = 0
        """The most streams that the present tokens of waiting requests may have after the last fork layer."""
        self.admitted_streams = 0
        """The sum of `streams_of` over all requests that `popleft` returned, each time that it did."""
        self._config = config
        self._queue: OrderedDict[Request, _Streams] = OrderedDict()  # removal costs the same anywhere
        self._by_client: Counter[str] = Counter()  # streams of complete requests; has no zeros

    def __iter__(self) -> Iterator[Request]:
        return iter(self._queue)

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def first(self) -> Request:
        """The request that is admitted next."""
        return next(iter(self._queue))

    def streams_of(self, request: Request) -> int:
        """Return the most streams that its present tokens may have after the last fork layer."""
        return most_streams(self._config, request.selection, request.num_tokens)[-1]

    def complete_streams_of(self, request: Request) -> int:
        """Return the most streams that it may have after the last fork layer with a completion of full length."""
        return most_streams(self._config, request.selection, request.max_tokens)[-1]

    def streams_of_client(self, client: str) -> int:
        """Return the sum of `complete_streams_of` over a client's requests; 0 for the client ""."""
        return self._by_client[client]

    def append(self, request: Request) -> None:
        """Add a request at the end."""
        streams = _Streams(self.streams_of(request), self.complete_streams_of(request) if request.client else 0)
        self._queue[request] = streams
        self._count(request.client, streams, 1)

    def appendleft(self, request: Request) -> None:
        """Add a preempted request at the head."""
        self.append(request)
        self._queue.move_to_end(request, last=False)

    def popleft(self) -> Request:
        """Remove and return the first request."""
        request, streams = self._queue.popitem(last=False)
        self._count(request.client, streams, -1)
        self.admitted_streams += streams.present
        return request

    def remove(self, request: Request) -> None:
        """Remove a request that is not admitted."""
        self._count(request.client, self._queue.pop(request), -1)

    def _count(self, client: str, streams: "_Streams", sign: int) -> None:
        """Add the streams of a request to the counts, or subtract them."""
        self.streams += sign * streams.present
        if client:
            self._by_client[client] += sign * streams.complete
            if not self._by_client[client]:
                del self._by_client[client]


class _Streams(NamedTuple):
    """What a waiting request counts as, which is the same until it is removed: it gets no token while it waits."""

    present: int
    """As `streams_of`."""
    complete: int
    """As `complete_streams_of`; 0 for a request of no client."""
