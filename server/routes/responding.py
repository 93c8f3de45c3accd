"""How a request to generate is answered in any wire form: whole, or as a stream."""

import asyncio
from collections.abc import Iterable
from contextlib import ExitStack
from urllib.parse import quote

from fastapi import Request, Response

from thoughtbubbles.server.bridge.generation import Generation
from thoughtbubbles.server.http.client_identity import client_of
from thoughtbubbles.server.http.disconnect import while_connected
from thoughtbubbles.server.http.streaming import CompletionStream
from thoughtbubbles.server.http.writing import answer_json, write_alone
from thoughtbubbles.server.observe.exchange import Exchange
from thoughtbubbles.server.protocol.completions import Completion
from thoughtbubbles.server.service import Service

LONGEST_HEADER = 1000


async def respond(request: Request, service: Service, completion: Completion, ignored: Iterable[str]) -> Response:
    """Run the completion's plan and tell what comes of it; the fields `ignored` are named in a header.

    The body of `request` must have been read. `ApiError` for what ends it before anything is told.
    """
    headers = _ignored_parameters(ignored)
    exchange = Exchange.of(request.scope)
    if service.settings.log_prompts:
        exchange.prompts = [service.worker.model.tokenizer.decode(ids) for ids in completion.plan.prompts]
    with ExitStack() as stack:
        client = client_of(request, service.keys)
        generation = service.worker.submit(completion.name, completion.plan.sequences, exchange.arrived, client)
        exchange.generation = stack.enter_context(generation)
        if not completion.plan.request.stream:
            await while_connected(request, _collect(completion, generation))
            write = write_alone if completion.long else asyncio.to_thread
            body = await write(lambda: answer_json(completion.whole()))
            return Response(body, media_type="application/json", headers=headers)
        first = await while_connected(request, anext(generation))
        stack.pop_all()  # the stream gives the generation up from here on
        return CompletionStream(
            completion,
            generation,
            first,
            metrics=service.metrics,
            headers=headers,
            keep_alive_seconds=service.settings.keep_alive_seconds,
        )


def _ignored_parameters(names: Iterable[str]) -> dict[str, str]:
    """A header that names the unknown fields, which lm-eval passes on from its own settings."""
    quoted = [quote(name) for name in names]
    # A header's value that ends in a space, cut there or after an empty name, is none: the connection would break.
    return {"x-ignored-parameters": ", ".join(quoted)[:LONGEST_HEADER].rstrip()} if quoted else {}


async def _collect(completion: Completion, generation: Generation) -> None:
    async for events in generation:
        completion.add(events)
