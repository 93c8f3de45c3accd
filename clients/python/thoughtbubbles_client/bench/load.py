"""Send requests concurrently until the plan is complete."""

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
"""The number of the request that is not measured."""
FAILURE_SECONDS = 0.1
"""Wait after a failure: without it, requests to a server that is down would fail thousands of times a second."""


async def put_load(client: AsyncClient, plan: Plan) -> Report:
    """Return the report of `plan`. Raises `ThoughtbubblesError` if the warm-up request fails."""
    prompt = await make_prompts(client, plan)
    await client.complete(prompt(WARM_UP), **plan.options(WARM_UP))
    return await _loaded(client, plan, prompt)


async def _loaded(client: AsyncClient, plan: Plan, prompt: Callable[[int], Prompt]) -> Report:
    outcomes: list[Answered | Failed] = []
    start = time.perf_counter()
    numbers = _numbers(plan, start)

    async def send_requests() -> None:
        for number in numbers:
            outcome = await measure(client, prompt(number), plan.options(number))
            outcomes.append(outcome)
            if isinstance(outcome, Failed):
                await asyncio.sleep(FAILURE_SECONDS)

    async with asyncio.TaskGroup() as group:
        for _ in range(plan.concurrency):
            group.create_task(send_requests())
    return Report.of(outcomes, time.perf_counter() - start)


def _numbers(plan: Plan, start: float) -> Iterator[int]:
    """Yield request numbers while requests are to be sent; all senders share the iterator."""
    for number in count() if plan.requests is None else range(plan.requests):
        if plan.seconds is not None and time.perf_counter() - start >= plan.seconds:
            return
        yield number
