"""So many requests at once, each followed by the next until there have been enough."""

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import count

from thoughtbubbles_client.async_client import AsyncClient
from thoughtbubbles_client.bench.measure import Answered, Failed, measure
from thoughtbubbles_client.bench.plan import Plan
from thoughtbubbles_client.bench.prompts import make_prompts
from thoughtbubbles_client.bench.report import Report
from thoughtbubbles_client.options import Prompt

WARM_UP = -1
"""Number of the request that is not measured."""
FAILURE_SECONDS = 0.1
"""What a client waits after a failure: asked again at once, a server that is down would fail thousands a second."""


async def put_load(client: AsyncClient, plan: Plan) -> Report:
    """Carry `plan` out. `ThoughtbubblesError` when the request before those that are measured is not answered."""
    prompt = await make_prompts(client, plan)
    await client.complete(prompt(WARM_UP), **plan.options(WARM_UP))
    return await _loaded(client, plan, prompt)


async def _loaded(client: AsyncClient, plan: Plan, prompt: Callable[[int], Prompt]) -> Report:
    outcomes: list[Answered | Failed] = []
    start = time.perf_counter()
    numbers = _numbers(plan, start)

    async def ask_again() -> None:
        for number in numbers:
            outcome = await measure(client, prompt(number), plan.options(number))
            outcomes.append(outcome)
            if isinstance(outcome, Failed):
                await asyncio.sleep(FAILURE_SECONDS)

    async with asyncio.TaskGroup() as group:
        for _ in range(plan.concurrency):
            group.create_task(ask_again())
    return Report.of(outcomes, time.perf_counter() - start)


def _numbers(plan: Plan, start: float) -> Iterator[int]:
    """The numbers of requests, for as long as new ones are to be sent; all who ask draw from the same."""
    for number in count() if plan.requests is None else range(plan.requests):
        if plan.seconds is not None and time.perf_counter() - start >= plan.seconds:
            return
        yield number
