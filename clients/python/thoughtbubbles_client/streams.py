"""Streamed answers: iterators that close their request when they end."""

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import AsyncGeneratorType, GeneratorType, TracebackType
from typing import Self, cast

from thoughtbubbles_client.results import Completion

# Each stream owns a generator that does not refer to it: when the stream is deleted, so is the generator, and the
# `finally` inside closes the response. The request is sent by the generator, so every response has one to close it.


class CompletionStream(Iterator[Completion]):
    """The parts of one answer, as they are generated. The request is sent when the first part is read.

    It is closed when it ends or raises, at the end of its `with` block, by `close`, and when it is deleted, for example
    after a loop that breaks. The server then stops generating. While a thread waits for a part, others cannot read or
    close the stream, which raises `RuntimeError`: `Client.cancel` with the `id` of a part ends it.
    """

    def __init__(self, parts: Generator[Completion, None, None]) -> None:
        self._parts = cast("GeneratorType[Completion, None, None]", parts)

    def __next__(self) -> Completion:
        self._require_idle()
        return next(self._parts)

    def close(self) -> None:
        """End the request if it runs; the stream returns no more parts."""
        self._require_idle()
        self._parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_idle(self) -> None:
        if self._parts.gi_running:
            raise RuntimeError("another thread is reading this stream: Client.cancel with the id of a part ends it")


class AsyncCompletionStream(AsyncIterator[Completion]):
    """The parts of one answer, as they are generated. The request is sent when the first part is read.

    It is closed when it ends or raises, when its task is cancelled, at the end of its `async with` block and by
    `aclose`. The server then stops generating. After a loop that breaks without the block, the event loop closes it a
    little later. While a task waits for a part, others cannot read or close the stream, which raises `RuntimeError`:
    cancel that task.
    """

    def __init__(self, parts: AsyncGenerator[Completion, None]) -> None:
        self._parts = cast("AsyncGeneratorType[Completion, None]", parts)

    async def __anext__(self) -> Completion:
        self._require_idle()
        return await anext(self._parts)

    async def aclose(self) -> None:
        """End the request if it runs; the stream returns no more parts."""
        self._require_idle()
        await self._parts.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _require_idle(self) -> None:
        if self._parts.ag_running:
            raise RuntimeError("another task is reading this stream: cancel that task to end it")
