"""POST /v1/chat/completions, for checkpoints that have a chat template (API.md §5)."""

import asyncio
import uuid
from collections.abc import Iterable

from fastapi import APIRouter, Request, Response

from server.chat import ignored, plan_chat
from server.chat_completions import ChatCompletion
from server.chat_schemas import ChatRequest
from server.loading import ServedModel
from server.openapi import STREAMED, refusals, takes
from server.planning import Plan
from server.responding import respond
from server.service import Serving
from server.validation import parse

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    response_model=None,
    responses=STREAMED | refusals(400, 404, 408, 413, 429, 499, 503),
    openapi_extra=takes(ChatRequest),
)
async def create_chat_completion(request: Request, service: Serving) -> Response:
    """Answer a conversation: whole, or as a stream."""
    served = service.worker.model
    name = f"chatcmpl-{uuid.uuid4().hex}"
    # JSON and text may be long: not on the event loop.
    planned, extra = await asyncio.to_thread(_plan, name, await request.body(), served)
    return await respond(request, service, ChatCompletion(name, planned, served), extra)


def _plan(name: str, body: bytes, served: ServedModel) -> tuple[Plan, Iterable[str]]:
    chat = parse(body, ChatRequest)
    return plan_chat(name, chat, served), ignored(chat)
