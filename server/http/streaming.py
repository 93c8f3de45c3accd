"""Server-sent events: the response starts with the first events, the others follow as they are made (API.md §3)."""

from collections.abc import AsyncIterator, Mapping, Sequence

from pydantic_core import to_json
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from thoughtbubbles.engine import TokenEvent
from thoughtbubbles.server.bridge.errors import GenerationError
from thoughtbubbles.server.bridge.generation import Generation
from thoughtbubbles.server.http.disconnect import while_connected
from thoughtbubbles.server.http.offload import LONG_ANSWERS, run_on
from thoughtbubbles.server.observe.metrics import Metrics
from thoughtbubbles.server.protocol.completions import Completion
from thoughtbubbles.server.protocol.handlers import api_error
from thoughtbubbles.server.protocol.requests import Json

# A comment: OpenAI's client fails at a named event, and at data that is not JSON.
KEEP_ALIVE = ServerSentEvent(comment="keep-alive", sep="\n").encode()
DONE = b"data: [DONE]\n\n"


def sse(value: Json) -> bytes:
    """Return one event. JSON has no line breaks, so `ServerSentEvent`'s splitting into lines is not needed."""
    return b"data: %b\n\n" % to_json(value)


class CompletionStream(EventSourceResponse):
    """The stream of one completion. Closes the generation when it ends, for whatever reason."""

    def __init__(
        self,
        completion: Completion,
        generation: Generation,
        *,
        metrics: Metrics,
        headers: Mapping[str, str],
        keep_alive_seconds: float,
    ) -> None:
        super().__init__(_pieces(completion, generation, keep_alive_seconds), headers=headers, sep="\n")
        del self.headers["connection"]  # sse-starlette's keep-alive; uvicorn says if the connection closes
        self._generation = generation
        self._metrics = metrics
        self._started = False

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, then close the generation.

        Raises `GenerationError` or `ClientDisconnect` if it ends before its first event. sse-starlette's own way has
        four tasks for each stream, a sixth of the event loop's time for a request or more.
        """
        with self._generation:
            try:
                await while_connected(receive, self._send_all(send))
            except ClientDisconnect:
                if not self._started:
                    raise
                if self._generation.unfinished:
                    self._metrics.disconnects.inc()

    async def _send_all(self, send: Send) -> None:
        async for piece in self.body_iterator:
            if not self._started:  # a refusal keeps its status
                self._started = True
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})


async def _pieces(completion: Completion, generation: Generation, keep_alive_seconds: float) -> AsyncIterator[bytes]:
    """Yield the stream's bytes. Pending events are sent together, so that a busy event loop sends fewer pieces.

    Raises `GenerationError` in place of the first bytes; later it ends the stream.
    """
    first = await anext(generation)
    completion.computed_by(generation.weights_version)
    generation.remind_every(keep_alive_seconds)
    try:
        yield await _written(completion, first)
        async for events in generation:
            yield await _written(completion, events) if events else KEEP_ALIVE
        end = [sse(chunk) for chunk in completion.last_chunks()]
    except GenerationError as error:
        end = [sse(api_error(error).body)]
    yield b"".join([*end, DONE])


async def _written(completion: Completion, events: Sequence[TokenEvent]) -> bytes:
    """Return the bytes of `events`. Log-probabilities of a prompt can be long: they are written off the event loop."""
    if not completion.long or all(event.prompt is None for event in events):
        return _write(completion, events)
    return await run_on(LONG_ANSWERS, lambda: _write(completion, events))


def _write(completion: Completion, events: Sequence[TokenEvent]) -> bytes:
    return b"".join([sse(chunk) for chunk in completion.chunks(events)])
