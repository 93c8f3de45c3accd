"""What stands before the replicas: reads a request, has one of them chosen, and passes its answer on."""

import asyncio
import json
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import from_json
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from deploy.replicas.exchange import Answer, HttpRequest
from deploy.replicas.metrics import page
from deploy.replicas.replica import Replica
from thoughtbubbles.server.protocol import errors

COMPARED_CHARACTERS = 4096
"""Of a prompt's beginning, so that the router's memory is one of beginnings; some 1,000 tokens."""
BROADCAST_SECONDS = 10.0
"""What all replicas may take to say something of themselves."""


@dataclass(frozen=True)
class Beginning:
    """How a prompt begins, under the name that Ray's router looks for."""

    prompt: str


def beginning(request: HttpRequest) -> list[Beginning]:
    """What the router may compare of a request: nothing, or one text.

    A ratio of its own stands before the text, because tokens are shared under the same budget alone.
    """
    try:
        asked = from_json(request.body)
        told = asked.get("prompt") or [message["content"] for message in asked["messages"]]
        text = told if isinstance(told, str) else json.dumps(told)
        ratio = asked.get("fork_ratio")
    except (ValueError, AttributeError, KeyError, TypeError):
        return []  # not a completion, or one that will be refused
    return [Beginning((text if ratio is None else f"{ratio} {text}")[:COMPARED_CHARACTERS])]


class Ingress:
    """An ASGI application whose every request is answered by a replica, or by an error of the API's form.

    When a replica dies its clients are told. Nobody else is asked in its place: a request that kills whoever computes
    it would go through them all.
    """

    def __init__(self, replicas: DeploymentHandle[Replica], seconds: float) -> None:
        """Wait so long at most until an answer begins; it may be infinite."""
        self._replicas = replicas
        self._one = replicas.options(method_name="answer", stream=True)
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        answer = Answer(scope, send)
        try:
            request = HttpRequest.of(scope, await Request(scope, receive).body())
            if scope["path"] == "/metrics":
                await (await self._metrics())(scope, receive, send)
            elif scope["path"].endswith("/cancel"):
                await self._pass_to_all(request, answer)
            else:
                await self._pass_to_one(request, answer)
        except ClientDisconnect:
            return
        except errors.ApiError as error:
            await answer.fail(error)

    async def _pass_to_one(self, request: HttpRequest, answer: Answer) -> None:
        response = self._one.remote(*await asyncio.to_thread(beginning, request), request=request)
        try:
            async with asyncio.timeout(self._seconds if math.isfinite(self._seconds) else None) as limit:
                async for message in response:
                    limit.reschedule(None)
                    await answer.pass_on(message)
        except TimeoutError:
            raise errors.timed_out(self._seconds) from None
        except BackPressureError as full:
            raise errors.queue_full(full.message, errors.RETRY_SECONDS) from None
        except (RayError, RayServeException):
            raise errors.cut_off() from None
        finally:
            with suppress(RayError, RayServeException):  # it raises again what kept the call from being made
                response.cancel()

    async def _pass_to_all(self, request: HttpRequest, answer: Answer) -> None:
        """Only one replica can know what is asked for: its answer, or else anybody's."""
        told: list[list[Message]] = await self._ask_all("whole_answer", request=request)
        for message in min(told, key=lambda messages: messages[0]["status"]):
            await answer.pass_on(message)

    async def _metrics(self) -> Response:
        return Response(page(await self._ask_all("metrics")), media_type=CONTENT_TYPE_LATEST)

    async def _ask_all(self, method: str, **arguments: object) -> list[Any]:
        """What every replica that lives says. `ApiError` when none does."""
        try:
            asked = self._replicas.broadcast(method, **arguments)
            told = await asked.results_async(timeout_s=BROADCAST_SECONDS, return_exceptions=True)
        except (TimeoutError, RayError, RayServeException):
            told = []
        living = [each for each in told if not isinstance(each, BaseException)]
        if not living:
            raise errors.unavailable("starting")
        return living
