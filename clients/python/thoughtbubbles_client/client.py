"""The client for code that waits; `async_client` has the other, which is written in the same order."""

import random
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from thoughtbubbles_client import calls
from thoughtbubbles_client.calls import Call
from thoughtbubbles_client.errors import NoAnswerError, ThoughtbubblesError
from thoughtbubbles_client.options import ChatOptions, CompletionOptions, Message, Prompt
from thoughtbubbles_client.parts import PartReader
from thoughtbubbles_client.reading import read
from thoughtbubbles_client.results import Completion, Model
from thoughtbubbles_client.retry import RetryPolicy
from thoughtbubbles_client.streams import CompletionStream
from thoughtbubbles_client.transport import DEFAULT_TIMEOUT, DEFAULT_URL, check, http_settings, is_stream, translated

T = TypeVar("T")


class Client:
    """A server's clients share its connections: make one, use it from any thread, close it or leave its `with` block.

    `url` is the server's address; `timeout` seconds without a byte from it after which to give up, or httpx's finer
    setting; `retry` when to ask again. `fork_counts=False` is for servers that refuse the field which asks for them.
    `transport` takes the place of the network. `ValueError` when `url` is no address or `api_key` no key.

    Every method raises `ThoughtbubblesError` (see `errors`) for what the server does.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (frozen)
        fork_counts: bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(**http_settings(url, api_key, timeout), transport=transport)
        self._retry = retry
        self._fork_counts = fork_counts

    def complete(self, prompt: Prompt = "", **options: Unpack[CompletionOptions]) -> Completion:
        """Continue `prompt`; all at once."""
        return self._ask(calls.complete(prompt, options, fork_counts=self._fork_counts))

    def stream(self, prompt: Prompt = "", **options: Unpack[CompletionOptions]) -> CompletionStream:
        """Continue `prompt`, part by part."""
        call = calls.complete(prompt, options, fork_counts=self._fork_counts, streamed=True)
        return CompletionStream(self._parts(call))

    def chat(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> Completion:
        """Answer a conversation; all at once. The model must have a chat template, else `BadRequestError`."""
        return self._ask(calls.chat(messages, options, fork_counts=self._fork_counts))

    def stream_chat(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> CompletionStream:
        """Answer a conversation, part by part. The model must have a chat template, else `BadRequestError`."""
        call = calls.chat(messages, options, fork_counts=self._fork_counts, streamed=True)
        return CompletionStream(self._parts(call))

    def cancel(self, completion_id: str) -> None:
        """End a completion or chat that runs, whoever asked for it. `NotFoundError` when it does not run."""
        self._ask(calls.cancel(completion_id))

    def tokenize(self, text: str) -> list[int]:
        """The token ids of `text`."""
        return self._ask(calls.tokenize(text))

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""
        return self._ask(calls.detokenize(token_ids))

    def models(self) -> list[Model]:
        """The models that the server has."""
        return self._ask(calls.models())

    def model(self, model_id: str) -> Model:
        """One of them. `ModelNotFoundError` when there is none of this name."""
        return self._ask(calls.model(model_id))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, call: Call[T]) -> T:
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
        """Try until it succeeds, or trying is of no more use."""
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

    def _try(self, call: Call[Any]) -> httpx.Response:
        """A successful response: read, or to be read as a stream and closed."""
        timeout = httpx.USE_CLIENT_DEFAULT if call.timeout is None else call.timeout
        request = self._http.build_request(call.method, call.path, json=call.body, timeout=timeout)
        with translated():
            response = self._http.send(request, stream=True)
            if call.streamed and is_stream(response):
                return response
            with closing(response):
                response.read()
        check(response, streamed=call.streamed)
        return response
