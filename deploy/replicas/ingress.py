"""The ingress: reads a request, has the router choose a replica, and passes the replica's answer on."""

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
"""Characters of a prompt that the router compares and remembers; some 1,000 tokens."""
BROADCAST_SECONDS = 10.0
"""Time limit for the answers of all replicas."""


@dataclass(frozen=True)
class Beginning:
    """The beginning of a prompt, in the attribute that Ray's router reads."""

    prompt: str


def beginning(request: HttpRequest) -> list[Beginning]:
    """Return the text that the router compares, in a list; an empty list for a request without a prompt.

    A `fork_ratio` is put before the text, because only requests with the same budget share cached prefixes.
    """
    try:
        asked = from_json(request.body)
        prompt = asked.get("prompt") or [message["content"] for message in asked["messages"]]
        text = prompt if isinstance(prompt, str) else json.dumps(prompt)
        ratio = asked.get("fork_ratio")
    except (ValueError, AttributeError, KeyError, TypeError):
        return []  # not a completion, or one that will be refused
    return [Beginning((text if ratio is None else f"{ratio} {text}")[:COMPARED_CHARACTERS])]


class Ingress:
    """An ASGI application whose every request is answered by a replica, or by an error of the API's form.

    When a replica dies, its clients get an error. Their requests are not sent to another replica: one that kills the
    replica that computes it would kill all of them.
    """

    def __init__(self, replicas: DeploymentHandle[Replica], seconds: float) -> None:
        """An answer must begin within `seconds`, which may be infinite."""
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
            with suppress(RayError, RayServeException):  # it raises the error of a failed call again
                response.cancel()

    async def _pass_to_all(self, request: HttpRequest, answer: Answer) -> None:
        """Send the answer of the one replica that has the completion, or any 404."""
        answers: list[list[Message]] = await self._ask_all("whole_answer", request=request)
        for message in min(answers, key=lambda messages: messages[0]["status"]):
            await answer.pass_on(message)

    async def _metrics(self) -> Response:
        return Response(page(await self._ask_all("metrics")), media_type=CONTENT_TYPE_LATEST)

    async def _ask_all(self, method: str, **arguments: object) -> list[Any]:
        """Return what the method returns on each living replica. Raise `ApiError` if there is none."""
        try:
            asked = self._replicas.broadcast(method, **arguments)
            results = await asked.results_async(timeout_s=BROADCAST_SECONDS, return_exceptions=True)
        except (TimeoutError, RayError, RayServeException):
            results = []
        living = [each for each in results if not isinstance(each, BaseException)]
        if not living:
            raise errors.unavailable("starting")
        return living
