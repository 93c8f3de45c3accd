"""Read the parts of a streamed answer from its bytes. No I/O."""

from collections.abc import Iterator

from thoughtbubbles_client.errors import DisconnectedError
from thoughtbubbles_client.reading import Json, completion, read, stream_error
from thoughtbubbles_client.results import Completion
from thoughtbubbles_client.sse import EventDecoder

END = "[DONE]"


class PartReader:
    """Reads a stream: call `feed` with its bytes as they arrive, and `end` after the last."""

    def __init__(self) -> None:
        self.done = False
        """Whether the server has marked the answer as complete."""
        self._events = EventDecoder()

    def feed(self, chunk: bytes) -> Iterator[Completion]:
        """Yield the parts that `chunk` completes. Raises `ApiError` that the server sends, or `InvalidAnswerError`."""
        for event in self._events.feed(chunk):
            if event.data == END:
                self.done = True
            elif event.name in {"message", "error"} and not self.done:
                yield read(event.data, _part)

    def end(self) -> None:
        """Raise `DisconnectedError` if the answer is not complete."""
        if not self.done:
            raise DisconnectedError("the stream ended before the answer was whole")


def _part(event: Json) -> Completion:
    error = stream_error(event)
    if error is not None:
        raise error
    return completion(event)
