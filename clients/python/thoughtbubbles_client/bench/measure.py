"""Measure one request as a client sees it."""

import time
from dataclasses import dataclass
from itertools import pairwise

from thoughtbubbles_client.async_client import AsyncClient
from thoughtbubbles_client.errors import ApiError, ThoughtbubblesError
from thoughtbubbles_client.options import CompletionOptions, Prompt
from thoughtbubbles_client.results import Completion, Usage


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A request that was answered completely; times in seconds."""

    arrivals: list[float]
    """When each token arrived, since the request was sent; tokens of one part arrive together."""
    seconds: float
    """When the answer was complete."""
    prompt_tokens: int
    """As the server counts them; 0 if it does not."""
    completion_tokens: int
    """As the server counts them, else as they arrived."""

    @property
    def gaps(self) -> list[float]:
        """The time between each token and the previous one."""
        return [later - earlier for earlier, later in pairwise(self.arrivals)]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A request that failed."""

    kind: str
    """The server's error code, such as `queue_full`, or the class of the error."""


async def measure(client: AsyncClient, prompt: Prompt, options: CompletionOptions) -> Answered | Failed:
    """Request one completion, and return when its tokens arrived."""
    arrivals: list[float] = []
    usage: Usage | None = None
    start = time.perf_counter()
    try:
        async with client.stream(prompt, **options) as stream:
            async for part in stream:
                arrivals += [time.perf_counter() - start] * _tokens(part)
                usage = part.usage or usage
    except ThoughtbubblesError as error:
        return Failed(kind=(error.code if isinstance(error, ApiError) else None) or type(error).__name__)
    return Answered(
        arrivals=arrivals,
        seconds=time.perf_counter() - start,
        prompt_tokens=0 if usage is None else usage.prompt_tokens,
        completion_tokens=len(arrivals) if usage is None else usage.completion_tokens,
    )


def _tokens(part: Completion) -> int:
    """Return the number of tokens in a part; 1 if it has text but the server does not send tokens."""
    return sum(len(choice.tokens) or bool(choice.text) for choice in part.choices)
