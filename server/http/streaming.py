"""Server-sent events: the first is awaited before the status goes out, the rest follow as they are made (API.md §3)."""

from collections.abc import AsyncIterator, Mapping, Sequence

from pydantic_core import to_json
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from thoughtbubbles.engine import TokenEvent
from thoughtbubbles.server.bridge.generation import Generation
from thoughtbubbles.server.http.writing import write_alone
from thoughtbubbles.server.observe.metrics import Metrics
from thoughtbubbles.server.protocol.completions import Completion
from thoughtbubbles.server.protocol.errors import ApiError
from thoughtbubbles.server.protocol.requests import Json

# A named event, or data that is not JSON, breaks OpenAI's client; a comment every client skips.
KEEP_ALIVE = ServerSentEvent(comment="keep-alive", sep="\n")
DONE = b"data: [DONE]\n\n"


def sse(value: Json) -> bytes:
    """One event. JSON has no line breaks, so nothing needs the care that `ServerSentEvent` takes of data."""
    return b"data: %b\n\n" % to_json(value)


class CompletionStream(EventSourceResponse):
    """The stream of one completion. Gives the generation up however it ends."""

    def __init__(
        self,
        completion: Completion,
        generation: Generation,
        first: Sequence[TokenEvent],
        *,
        metrics: Metrics,
        headers: Mapping[str, str],
        keep_alive_seconds: float,
    ) -> None:
        super().__init__(
            _told(completion, generation, first),
            headers=headers,
            sep="\n",
            ping=keep_alive_seconds,
            ping_message_factory=lambda: KEEP_ALIVE,
        )
        self._generation = generation
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all there is; here, not in the iterator, because a client can leave before that is first asked."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._generation.unfinished:
                self._metrics.disconnects.inc()
            self._generation.close()


async def _told(completion: Completion, generation: Generation, first: Sequence[TokenEvent]) -> AsyncIterator[bytes]:
    """What is sent, in pieces: all that waits at once, so that a loop that falls behind has less to send."""
    try:
        yield await _written(completion, first)
        async for events in generation:
            yield await _written(completion, events)
        end = [sse(chunk) for chunk in completion.last_chunks()]
    except ApiError as error:
        end = [sse(error.body)]
    yield b"".join([*end, DONE])


async def _written(completion: Completion, events: Sequence[TokenEvent]) -> bytes:
    """What is told of events. A prompt with its log-probabilities can be long, and is written off the event loop."""
    if not completion.long or all(event.prompt is None for event in events):
        return _write(completion, events)
    return await write_alone(lambda: _write(completion, events))


def _write(completion: Completion, events: Sequence[TokenEvent]) -> bytes:
    return b"".join([sse(chunk) for chunk in completion.chunks(events)])
