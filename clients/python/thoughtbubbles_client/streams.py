"""Streamed answers: iterators that close their request when they end."""

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import Self

from thoughtbubbles_client.results import Completion

# Each stream owns a generator that does not refer to it: when the stream is deleted, so is the generator, and the
# `finally` inside closes the response. The request is sent by the generator, so every response has one to close it.


class CompletionStream(Iterator[Completion]):
    """The parts of one answer, as they are generated. The request is sent when the first part is read.

    It is closed when it ends or raises, at the end of its `with` block, by `close`, and when it is deleted, for example
    after a loop that breaks. The server then stops generating.
    """

    def __init__(self, parts: Generator[Completion, None, None]) -> None:
        self._parts = parts

    def __next__(self) -> Completion:
        return next(self._parts)

    def close(self) -> None:
        """End the request if it runs; the stream returns no more parts."""
        self._parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncCompletionStream(AsyncIterator[Completion]):
    """The parts of one answer, as they are generated. The request is sent when the first part is read.

    It is closed when it ends or raises, when its task is cancelled, at the end of its `async with` block and by
    `aclose`. The server then stops generating. After a loop that breaks without the block, the event loop closes it a
    little later.
    """

    def __init__(self, parts: AsyncGenerator[Completion, None]) -> None:
        self._parts = parts

    async def __anext__(self) -> Completion:
        return await anext(self._parts)

    async def aclose(self) -> None:
        """End the request if it runs; the stream returns no more parts."""
        await self._parts.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
