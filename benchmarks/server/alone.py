"""The engine without a server: clients' requests, and each answer with the times of its tokens."""

import time
from collections.abc import Callable

from benchmarks.server.clients import Answer
from thoughtbubbles.engine import Engine, SamplingParams

Ask = Callable[[int, int], tuple[list[int], SamplingParams]]
"""Returns the prompt and parameters of a client's request, by the client's number and its own among the client's."""


def complete_alone(engine: Engine, ask: Ask, *, clients: int, requests: int) -> list[Answer]:
    """Return the answers of an engine to `clients` that each send so many `requests`, one after the other."""
    sent: dict[str, float] = {}
    arrivals: dict[str, list[float]] = {}

    def add(client: int, number: int) -> None:
        name, (prompt, params) = f"{client}/{number}", ask(client, number)
        sent[name], arrivals[name] = time.monotonic(), []
        engine.add(name, prompt, params)

    for client in range(clients):
        add(client, 0)
    while engine.has_work:
        events = engine.step()
        now = time.monotonic()
        for event in events:
            arrivals[event.request_id].append(now)
            client, number = map(int, event.request_id.split("/"))
            if event.finish_reason is not None and number + 1 < requests:
                add(client, number + 1)
    return [
        Answer(outcome="200", sent=sent[name], arrivals=arrivals[name], tokens=len(arrivals[name])) for name in sent
    ]
