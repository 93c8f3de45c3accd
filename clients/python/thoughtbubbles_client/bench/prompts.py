"""Random prompts of one length, so that a prefix cache does not help."""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from thoughtbubbles_client.async_client import AsyncClient
from thoughtbubbles_client.bench.plan import Plan
from thoughtbubbles_client.options import Prompt

T = TypeVar("T")

TEXT = (
    "On a calm evening the keeper of the old lighthouse wrote a long letter to her brother, who had left the village"
    " years before and never learned how quickly the harbour filled with sand. She told him about the storm in March,"
    " the price of bread, two families from the north, and the schoolmaster's plan to measure the tide by moonlight."
    " Nobody believed that it could work, yet everyone came down to the water with lamps, and the children counted each"
    " wave aloud until the smallest of them fell asleep on a heap of nets."
)
"""Prompts are made of its tokens or words."""


async def make_prompts(client: AsyncClient, plan: Plan) -> Callable[[int], Prompt]:
    """Return a function from a request's number to its prompt. Tokenizes on the server unless `plan.openai_only`."""
    if plan.openai_only:
        return lambda number: " ".join(_drawn(TEXT.split(), plan, number))
    token_ids = await client.tokenize(TEXT)
    return lambda number: _drawn(token_ids, plan, number)


def _drawn(pieces: Sequence[T], plan: Plan, number: int) -> list[T]:
    return random.Random(f"{plan.seed}/{number}").choices(pieces, k=plan.prompt_tokens)
