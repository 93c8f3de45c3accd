"""The synchronous client; `async_client` is the same for asyncio, method for method."""

import os
import random
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
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
from thoughtbubbles_client.streams import CompletionStream
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


class Client:
    """A client of one server. Any thread may use it, and any process after a fork; close it, or use a `with` block.

    `url` is the server's address. `timeout` is the longest wait for a byte, in seconds (None: no limit), or an
    `httpx.Timeout`. `retry` says when failed requests are sent again. `fork_counts=False` is for servers that refuse
    the field `return_fork_counts`. `transport` replaces the network. Raises `ValueError` for a wrong `url`, `api_key`
    or `timeout`.

    Every method raises `ThoughtbubblesError` (see `errors`) if the request fails.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = DEFAULT_TIMEOUT,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (frozen)
        fork_counts: bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connect = partial(httpx.Client, **http_settings(url, api_key, timeout), transport=transport)
        self._http, self._process = self._connect(), os.getpid()
        self._retry = retry
        self._fork_counts = fork_counts

    def complete(self, prompt: Prompt = "", **options: Unpack[CompletionOptions]) -> Completion:
        """Return a completion of `prompt`."""
        return self._request(calls.complete(prompt, options, fork_counts=self._fork_counts))

    def stream(self, prompt: Prompt = "", **options: Unpack[CompletionOptions]) -> CompletionStream:
        """Return a completion of `prompt` as a stream."""
        call = calls.complete(prompt, options, fork_counts=self._fork_counts, streamed=True)
        return CompletionStream(self._parts(call))

    def chat(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> Completion:
        """Return the answer to a conversation. Raises `BadRequestError` if the model has no chat template."""
        return self._request(calls.chat(messages, options, fork_counts=self._fork_counts))

    def stream_chat(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> CompletionStream:
        """Return the answer as a stream. Raises `BadRequestError` if the model has no chat template."""
        call = calls.chat(messages, options, fork_counts=self._fork_counts, streamed=True)
        return CompletionStream(self._parts(call))

    def cancel(self, completion_id: str) -> None:
        """End a running completion or chat of any client. Raises `NotFoundError` if it does not run."""
        self._request(calls.cancel(completion_id))

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of `text`."""
        return self._request(calls.tokenize(text))

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return self._request(calls.detokenize(token_ids))

    def models(self) -> list[Model]:
        """Return the models of the server."""
        return self._request(calls.models())

    def model(self, model_id: str) -> Model:
        """Return one model. Raises `ModelNotFoundError` if the server has none with this name."""
        return self._request(calls.model(model_id))

    def load_weights(self, checkpoint: str | PathLike[str], *, admin_key: str) -> LoadedWeights:
        """Replace the weights of the served model, and return when the new ones are served.

        `checkpoint` is a folder on the server's machine, or a hub id. Requests that run finish with the weights from
        before, and those that wait start with the new ones. Raises `BadRequestError` with what differs if anything but
        the weights does, `ConflictError` while another load is in progress, `UnauthorizedError` for a wrong
        `admin_key`.
        """
        return self._request(calls.load_weights(checkpoint, admin_key))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, call: Call[T]) -> T:
        return read(self._send(call).content, call.read)

    def _parts(self, call: Call[Completion]) -> Generator[Completion, None, None]:
        reader = PartReader()
        with closing(self._send(call)) as response:
            try:
                with translated():
                    for chunk in response.iter_bytes():
                        yield from reader.feed(chunk)
            except NoAnswerError:
                if not reader.done:
                    raise
        reader.end()

    def _send(self, call: Call[Any]) -> httpx.Response:
        """Return a successful response; retry as the policy says."""
        failures = 0
        while True:
            try:
                return self._try(call)
            except ThoughtbubblesError as error:
                failures += 1
                pause = self._retry.pause(error, failures, random.random())
                if pause is None:
                    raise
            time.sleep(pause)

    def _own(self) -> httpx.Client:
        """Return this process's connections. After a fork both processes would read from those from before."""
        if self._process != os.getpid():
            self._http, self._process = self._connect(), os.getpid()
        return self._http

    def _try(self, call: Call[Any]) -> httpx.Response:
        """Return a successful response. It has been read, unless it is a stream, which the caller reads and closes."""
        timeout = httpx.USE_CLIENT_DEFAULT if call.timeout is None else time_limits(call.timeout)
        http = self._own()
        request = http.build_request(call.method, call.path, json=call.body, headers=call.headers, timeout=timeout)
        with translated():
            response = http.send(request, stream=True)
            if call.streamed and is_stream(response):
                return response
            with closing(response):
                response.read()
        check(response, streamed=call.streamed)
        return response
