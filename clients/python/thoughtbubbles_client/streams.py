"""Streamed answers as iterators that end their request however they are left."""

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import Self

from thoughtbubbles_client.results import Completion

# Each stream owns nothing but a generator that knows nothing of it: when the stream is dropped, so is the generator,
# and the `finally` inside closes the response. Nothing is sent before the first part is asked for, so there is never
# a response that no generator looks after.


class CompletionStream(Iterator[Completion]):
    """The parts of one answer, as they are made. The request is sent when the first is asked for.

    Closed when it ends or raises, at the end of its `with` block, by `close`, and when a loop that breaks drops it:
    the server then computes no further.
    """

    def __init__(self, parts: Generator[Completion, None, None]) -> None:
        self._parts = parts

    def __next__(self) -> Completion:
        return next(self._parts)

    def close(self) -> None:
        """End the request, if it runs; no more parts come."""
        self._parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncCompletionStream(AsyncIterator[Completion]):
    """The parts of one answer, as they are made. The request is sent when the first is asked for.

    Closed when it ends or raises, when its task is cancelled, at the end of its `async with` block and by `aclose`: the
    server then computes no further. A loop that breaks without the block leaves closing to the event loop, a little
    later.
    """

    def __init__(self, parts: AsyncGenerator[Completion, None]) -> None:
        self._parts = parts

    async def __anext__(self) -> Completion:
        return await anext(self._parts)

    async def aclose(self) -> None:
        """End the request, if it runs; no more parts come."""
        await self._parts.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
