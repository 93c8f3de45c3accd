"""The client for asyncio: the same methods as `client`, which describes them in more detail."""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from os import PathLike
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from thoughtbubbles_client import calls
from thoughtbubbles_client.calls import Call
from thoughtbubbles_client.errors import NoAnswerError, ThoughtbubblesError
from thoughtbubbles_client.options import ChatOptions, CompletionOptions, Message, Prompt
from thoughtbubbles_client.parts import PartReader
from thoughtbubbles_client.reading import read
from thoughtbubbles_client.results import Completion, LoadedWeights, Model
from thoughtbubbles_client.retry import RetryPolicy
from thoughtbubbles_client.streams import AsyncCompletionStream
from thoughtbubbles_client.transport import (
    DEFAULT_TIMEOUT,
    DEFAULT_URL,
    check,
    http_settings,
    is_stream,
    time_limits,
    translated,
)

T = TypeVar("T")


class AsyncClient:
    """`Client` for asyncio: make one in each event loop; close it, or use it in an `async with` block."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = DEFAULT_TIMEOUT,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (frozen)
        fork_counts: bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**http_settings(url, api_key, timeout), transport=transport)
        self._retry = retry
        self._fork_counts = fork_counts

    async def complete(self, prompt: Prompt = "", **options: Unpack[CompletionOptions]) -> Completion:
        """Return a completion of `prompt`."""
        return await self._request(calls.complete(prompt, options, fork_counts=self._fork_counts))

    def stream(self, prompt: Prompt = "", **options: Unpack[CompletionOptions]) -> AsyncCompletionStream:
        """Return a completion of `prompt` as a stream."""
        call = calls.complete(prompt, options, fork_counts=self._fork_counts, streamed=True)
        return AsyncCompletionStream(self._parts(call))

    async def chat(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> Completion:
        """Return the answer to a conversation. Raises `BadRequestError` if the model has no chat template."""
        return await self._request(calls.chat(messages, options, fork_counts=self._fork_counts))

    def stream_chat(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> AsyncCompletionStream:
        """Return the answer as a stream. Raises `BadRequestError` if the model has no chat template."""
        call = calls.chat(messages, options, fork_counts=self._fork_counts, streamed=True)
        return AsyncCompletionStream(self._parts(call))

    async def cancel(self, completion_id: str) -> None:
        """End a running completion or chat of any client. Raises `NotFoundError` if it does not run."""
        await self._request(calls.cancel(completion_id))

    async def tokenize(self, text: str) -> list[int]:
        """Return the token ids of `text`."""
        return await self._request(calls.tokenize(text))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return await self._request(calls.detokenize(token_ids))

    async def models(self) -> list[Model]:
        """Return the models of the server."""
        return await self._request(calls.models())

    async def model(self, model_id: str) -> Model:
        """Return one model. Raises `ModelNotFoundError` if the server has none with this name."""
        return await self._request(calls.model(model_id))

    async def load_weights(self, checkpoint: str | PathLike[str], *, admin_key: str) -> LoadedWeights:
        """Replace the weights of the served model, and return when the new ones are served."""
        return await self._request(calls.load_weights(checkpoint, admin_key))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _request(self, call: Call[T]) -> T:
        return read((await self._send(call)).content, call.read)

    async def _parts(self, call: Call[Completion]) -> AsyncGenerator[Completion, None]:
        reader = PartReader()
        async with aclosing(await self._send(call)) as response:
            try:
                with translated():
                    async for chunk in response.aiter_bytes():
                        for part in reader.feed(chunk):
                            yield part
            except NoAnswerError:
                if not reader.done:
                    raise
        reader.end()

    async def _send(self, call: Call[Any]) -> httpx.Response:
        """Return a successful response; retry as the policy says."""
        failures = 0
        while True:
            try:
                return await self._try(call)
            except ThoughtbubblesError as error:
                failures += 1
                pause = self._retry.pause(error, failures, random.random())
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def _try(self, call: Call[Any]) -> httpx.Response:
        """Return a successful response. It has been read, unless it is a stream, which the caller reads and closes."""
        timeout = httpx.USE_CLIENT_DEFAULT if call.timeout is None else time_limits(call.timeout)
        request = self._http.build_request(
            call.method, call.path, json=call.body, headers=call.headers, timeout=timeout
        )
        with translated():
            response = await self._http.send(request, stream=True)
            if call.streamed and is_stream(response):
                return response
            async with aclosing(response):
                await response.aread()
        check(response, streamed=call.streamed)
        return response
