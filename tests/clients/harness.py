"""What tests of the Python client work with: both clients behind one face, and a server made of a function."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Self, cast

import httpx

from thoughtbubbles_client import AsyncClient, AsyncCompletionStream, Client, Completion

URL = "http://server"
STREAMED = {"content-type": "text/event-stream; charset=utf-8"}
Json = dict[str, Any]
MakeClient = Callable[..., Client]
"""Makes a client with these settings; what is made may be `Waiting`, which has the same methods."""


class Waiting:
    """An `AsyncClient` with the methods of `Client`: each runs its event loop for as long as it takes."""

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401 (what AsyncClient takes)
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*args, **settings)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: object, **options: object) -> object:
            made = getattr(self._client, name)(*args, **options)
            if isinstance(made, AsyncCompletionStream):
                return WaitingStream(self._runner, made)
            return self._wait(made)

        return call

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._client.aclose())
        self._runner.close()

    def _wait(self, made: Coroutine[object, object, object]) -> object:
        return self._runner.run(made)


class WaitingStream(Iterator[Completion]):
    """An `AsyncCompletionStream` that waits likewise."""

    def __init__(self, runner: asyncio.Runner, stream: AsyncCompletionStream) -> None:
        self._runner = runner
        self._stream = stream

    def __next__(self) -> Completion:
        async def advance() -> Completion | None:
            return await anext(self._stream, None)

        part = self._runner.run(advance())
        if part is None:
            raise StopIteration
        return part

    def close(self) -> None:
        self._runner.run(self._stream.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


CLIENTS: Mapping[str, MakeClient] = {"sync": Client, "async": cast("MakeClient", Waiting)}


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of an answer in pieces, one of which may be an error; knows whether it has been closed."""

    def __init__(self, pieces: Iterable[bytes | Exception]) -> None:
        self.closed = False
        self._pieces = iter(pieces)

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.close()


def answering(*answers: httpx.Response | Exception) -> httpx.MockTransport:
    """A server that gives these answers, one after the other; an error is one of the network."""
    left = iter(answers)

    def answer(_request: httpx.Request) -> httpx.Response:
        given = next(left)
        if isinstance(given, Exception):
            raise given
        if isinstance(given.stream, Body):
            return given
        # A client makes the response its own, so that each gets a new one.
        return httpx.Response(given.status_code, headers=given.headers, content=given.content)

    return httpx.MockTransport(answer)


def streaming(*pieces: bytes | Exception) -> tuple[httpx.MockTransport, Body]:
    """A server that streams these pieces, and its body."""
    body = Body(pieces)
    return answering(httpx.Response(200, headers=STREAMED, stream=body)), body


def part(text: str | None, **fields: object) -> Json:
    """A completion on the wire, with one choice."""
    choice = {"index": 0, "text": text, "finish_reason": None, "logprobs": None}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "tiny", "choices": [choice], **fields}


def event(data: Json | str) -> bytes:
    """One event of a stream."""
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


DONE = event("[DONE]")
COMPLETE = httpx.Response(200, json=part("done"))
"""An answer that may be given again and again."""


def refusal(status: int, headers: Mapping[str, str] | None = None, **detail: object) -> httpx.Response:
    """An answer that is no success."""
    error = {"message": "no", "type": "invalid_request_error", "param": None, "code": None, **detail}
    return httpx.Response(status, headers=headers, json={"error": error})
