"""POST /v1/chat/completions, for checkpoints that have a chat template (API.md §5)."""

import uuid

from fastapi import APIRouter, Request, Response

from thoughtbubbles.server.http.offload import offload, offload_planning
from thoughtbubbles.server.protocol.chat import ChatCompletion
from thoughtbubbles.server.protocol.chat_planning import plan_chat
from thoughtbubbles.server.protocol.chat_requests import ChatRequest
from thoughtbubbles.server.protocol.grammars import is_constrained
from thoughtbubbles.server.protocol.unsupported import ignored
from thoughtbubbles.server.protocol.validation import parse
from thoughtbubbles.server.routes.direct import DirectRoute
from thoughtbubbles.server.routes.openapi import STREAMED, refusals, takes
from thoughtbubbles.server.routes.responding import respond
from thoughtbubbles.server.service import Service

router = APIRouter(route_class=DirectRoute, responses=refusals(401, 500))


@router.post(
    "/v1/chat/completions",
    response_model=None,
    responses=STREAMED | refusals(400, 404, 408, 413, 415, 429, 499, 503),
    openapi_extra=takes(ChatRequest),
)
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation, whole or as a stream."""
    service = Service.of(request)
    served = service.worker.model
    completion_id = f"chatcmpl-{uuid.uuid4().hex}"
    body = await request.body()
    chat = await offload(lambda: parse(body, ChatRequest), len(body))
    completion = await offload_planning(
        request,
        lambda: ChatCompletion(completion_id, plan_chat(completion_id, chat, served), served),
        len(body) * chat.n,
        compiles=is_constrained(chat),
    )
    return await respond(request, service, completion, ignored(chat))
