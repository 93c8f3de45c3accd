"""The requests that wait for a place in the batch, and how much they will ask of it. No torch in here."""

from collections import Counter, OrderedDict
from collections.abc import Iterator

from thoughtbubbles.engine.cache.fork_cache import most_streams
from thoughtbubbles.engine.request import Request
from thoughtbubbles.model import ModelConfig


class Waiting:
    """First come, first served; measured in streams, for prompts differ in length and in their forks."""

    def __init__(self, config: ModelConfig) -> None:
        self.streams = 0
        """The most streams that the present tokens of those who wait may have after the last fork layer."""
        self.taken_streams = 0
        """Of those taken out by `popleft` so far, each as often as it was; never falls."""
        self._config = config
        self._line: OrderedDict[Request, None] = OrderedDict()  # removal takes as long from any place
        self._by_client: Counter[str] = Counter()  # streams of complete requests; only clients that have some

    def __iter__(self) -> Iterator[Request]:
        return iter(self._line)

    def __len__(self) -> int:
        return len(self._line)

    @property
    def first(self) -> Request:
        """Whose turn it is."""
        return next(iter(self._line))

    def streams_of(self, request: Request) -> int:
        """The most streams that its present tokens may have after the last fork layer."""
        return most_streams(self._config, request.selection, request.num_tokens)[-1]

    def complete_streams_of(self, request: Request) -> int:
        """The most streams that it may have after the last fork layer when its completion is as long as it may be."""
        return most_streams(self._config, request.selection, request.max_tokens)[-1]

    def streams_of_client(self, client: str) -> int:
        """What `complete_streams_of` says of a client's requests, together; 0 for requests of nobody in particular."""
        return self._by_client[client]

    def append(self, request: Request) -> None:
        """To the end of the line."""
        self._line[request] = None
        self._count(request, 1)

    def appendleft(self, request: Request) -> None:
        """To its head: it had its turn already."""
        self._line[request] = None
        self._line.move_to_end(request, last=False)
        self._count(request, 1)

    def popleft(self) -> Request:
        """Take the first one out."""
        request, _ = self._line.popitem(last=False)
        self.taken_streams += self._count(request, -1)
        return request

    def remove(self, request: Request) -> None:
        """Let one leave without its turn."""
        del self._line[request]
        self._count(request, -1)

    def _count(self, request: Request, sign: int) -> int:
        """Add a request that came, or subtract one that left; its streams."""
        streams = self.streams_of(request)
        self.streams += sign * streams
        if request.client:
            self._by_client[request.client] += sign * self.complete_streams_of(request)
            if not self._by_client[request.client]:
                del self._by_client[request.client]
        return streams
