"""Server-sent events: the first is awaited before the status goes out, the rest follow as they are made (API.md §3)."""

from collections.abc import AsyncIterator, Mapping

from pydantic_core import to_json
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from engine import TokenEvent
from server.completions import Completion
from server.errors import ApiError
from server.generation import Generation
from server.metrics import Metrics
from server.schemas import Json
from server.writing import write_alone

# A named event, or data that is not JSON, breaks OpenAI's client; a comment every client skips.
KEEP_ALIVE = ServerSentEvent(comment="keep-alive", sep="\n")
DONE = "[DONE]"


def to_text(value: Json) -> str:
    """JSON for one event."""
    return to_json(value).decode()


class CompletionStream(EventSourceResponse):
    """The stream of one completion. Gives the generation up however it ends."""

    def __init__(
        self,
        completion: Completion,
        generation: Generation,
        first: TokenEvent,
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


async def _told(completion: Completion, generation: Generation, first: TokenEvent) -> AsyncIterator[str]:
    try:
        for text in await _texts(completion, first):
            yield text
        async for event in generation:
            for text in await _texts(completion, event):
                yield text
        for chunk in completion.last_chunks():
            yield to_text(chunk)
    except ApiError as error:
        yield to_text(error.body)
    yield DONE


async def _texts(completion: Completion, event: TokenEvent) -> list[str]:
    """What is told of an event. A prompt with its log-probabilities can be long, and is written off the event loop."""
    if event.prompt is None:
        return [to_text(chunk) for chunk in completion.chunks(event)]
    return await write_alone(lambda: [to_text(chunk) for chunk in completion.chunks(event)])
