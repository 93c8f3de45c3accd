"""Answer a generation request in any wire form: whole, or as a stream."""

import asyncio
from collections.abc import Iterable
from urllib.parse import quote

from fastapi import Request, Response
from pydantic_core import to_json

from thoughtbubbles.server.bridge.generation import Generation
from thoughtbubbles.server.http.client_identity import client_of
from thoughtbubbles.server.http.disconnect import while_connected
from thoughtbubbles.server.http.offload import LONG_ANSWERS, run_on
from thoughtbubbles.server.http.streaming import CompletionStream
from thoughtbubbles.server.observe.exchange import Exchange
from thoughtbubbles.server.protocol.completions import Completion
from thoughtbubbles.server.protocol.requests import Json
from thoughtbubbles.server.service import Service

MAX_HEADER_LENGTH = 1000


async def respond(request: Request, service: Service, completion: Completion, ignored: Iterable[str]) -> Response:
    """Run the completion's plan and return the answer, with a header that names the `ignored` fields.

    The body of `request` must have been read. Raises `GenerationError` if the generation ends before the answer starts;
    of a stream, the response does.
    """
    headers = _ignored_parameters(ignored)
    exchange = Exchange.of(request.scope)
    if service.settings.log_prompts:
        exchange.prompts = [service.worker.model.tokenizer.decode(ids) for ids in completion.plan.prompts]
    client = client_of(request, service.keys)
    generation = service.worker.submit(completion.completion_id, completion.plan.sequences, exchange.arrived, client)
    exchange.generation = generation
    if completion.plan.request.stream:
        return CompletionStream(
            completion,
            generation,
            metrics=service.metrics,
            headers=headers,
            keep_alive_seconds=service.settings.keep_alive_seconds,
        )
    with generation:
        await while_connected(request.receive, _collect(completion, generation))
        completion.computed_by(generation.weights_version)
        return Response(await _written(completion), media_type="application/json", headers=headers)


def answer_json(answer: Json) -> bytes:
    """Return a whole answer as JSON, made choice by choice: meanwhile no other thread runs Python."""
    head = to_json({name: value for name, value in answer.items() if name != "choices"})
    return b'%b,"choices":[%b]}' % (head[:-1], b",".join(map(to_json, answer["choices"])))


def _ignored_parameters(names: Iterable[str]) -> dict[str, str]:
    """Return a header with the names of unknown fields; lm-eval sends its own settings, for example."""
    quoted = [quote(name, safe="/[]") for name in names]
    # A header value must not end in a space, after an empty name or where it is cut: the connection would break.
    return {"x-ignored-parameters": ", ".join(quoted)[:MAX_HEADER_LENGTH].rstrip()} if quoted else {}


async def _collect(completion: Completion, generation: Generation) -> None:
    async for events in generation:
        completion.add(events)


async def _written(completion: Completion) -> bytes:
    """Return the whole answer; it is written off the event loop."""

    def write() -> bytes:
        return answer_json(completion.whole())

    return await (run_on(LONG_ANSWERS, write) if completion.long else asyncio.to_thread(write))
