"""Questions and answers between two processes of a server, each on its event loop."""

import asyncio
import itertools
import pickle
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from thoughtbubbles.server.bridge.packing import LENGTH_BYTES, framed


@dataclass(frozen=True)
class _Question:
    number: int
    content: object


@dataclass(frozen=True)
class _Answer:
    number: int
    content: object
    """What is answered, or the exception that the question raised."""


class Channel:
    """One end of a pair of sockets. Either side may ask the other, as often as it likes."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Callable[[Any], Awaitable[object]]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._answer = answer
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._answering = set[asyncio.Task[None]]()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, end: socket.socket, answer: Callable[[Any], Awaitable[object]]) -> Self:
        """Return the channel of this socket, which it takes. `answer` is called with the other side's questions."""
        return cls(*await asyncio.open_unix_connection(sock=end), answer)

    async def ask(self, question: object) -> Any:  # noqa: ANN401 - each question has an answer of its own type
        """Return the other side's answer, or raise its exception. `ConnectionError`: the other side has closed."""
        if self._reading.done():
            raise ConnectionResetError("the other process has closed the channel")
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._send(_Question(number, question))
        try:
            return await answer
        finally:
            del self._asked[number]

    async def closed(self) -> None:
        """Wait until the other side has closed."""
        await asyncio.wait([self._reading])

    def close(self) -> None:
        """Close this side."""
        self._writer.close()

    async def _read(self) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES))
                self._take(pickle.loads(await self._reader.readexactly(length)))  # noqa: S301 (our own)
        for answer in self._asked.values():
            if not answer.done():  # a question that was cancelled, and that `ask` is about to remove
                answer.set_exception(ConnectionResetError("the other process has closed the channel"))

    def _take(self, message: _Question | _Answer) -> None:
        match message:
            case _Question():
                task = asyncio.create_task(self._reply(message))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            case _Answer(number, content) if (answer := self._asked.get(number)) is not None and not answer.done():
                if isinstance(content, Exception):
                    answer.set_exception(content)
                else:
                    answer.set_result(content)

    async def _reply(self, question: _Question) -> None:
        try:
            content = await self._answer(question.content)
        except Exception as error:
            content = error
        self._send(_Answer(question.number, content))

    def _send(self, message: _Question | _Answer) -> None:
        if not self._writer.is_closing():  # the other process has ended
            self._writer.write(framed(message))
