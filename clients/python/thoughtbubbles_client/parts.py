"""The parts of a streamed answer, out of its bytes; no I/O either."""

from collections.abc import Iterator

from thoughtbubbles_client.errors import DisconnectedError
from thoughtbubbles_client.reading import Json, completion, read, stream_error
from thoughtbubbles_client.results import Completion
from thoughtbubbles_client.sse import EventDecoder

END = "[DONE]"


class PartReader:
    """Feed it the bytes of a stream as they come, and say when they end."""

    def __init__(self) -> None:
        self.done = False
        """Whether the server has said that the answer is whole."""
        self._events = EventDecoder()

    def feed(self, chunk: bytes) -> Iterator[Completion]:
        """The parts that `chunk` completes. `ApiError` where the server breaks off, `InvalidAnswerError`."""
        for event in self._events.feed(chunk):
            if event.data == END:
                self.done = True
            elif event.name in {"message", "error"} and not self.done:
                yield read(event.data, _part)

    def end(self) -> None:
        """No more bytes come. `DisconnectedError` when the answer is not whole."""
        if not self.done:
            raise DisconnectedError("the stream ended before the answer was whole")


def _part(event: Json) -> Completion:
    error = stream_error(event)
    if error is not None:
        raise error
    return completion(event)
