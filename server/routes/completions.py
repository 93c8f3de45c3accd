"""POST /v1/completions, cancelling, and the list of models (API.md §1 to §3, §5)."""

import uuid

from fastapi import APIRouter, Request, Response

from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.http.offload import offload, offload_planning
from thoughtbubbles.server.protocol.completions import Completion
from thoughtbubbles.server.protocol.errors import no_model, not_found, quoted
from thoughtbubbles.server.protocol.grammars import is_constrained
from thoughtbubbles.server.protocol.planning import plan
from thoughtbubbles.server.protocol.requests import CompletionRequest, Json
from thoughtbubbles.server.protocol.unsupported import ignored
from thoughtbubbles.server.protocol.validation import parse
from thoughtbubbles.server.routes.direct import DirectRoute
from thoughtbubbles.server.routes.openapi import STREAMED, refusals, takes
from thoughtbubbles.server.routes.responding import respond
from thoughtbubbles.server.service import Service, Serving

create = APIRouter(route_class=DirectRoute, responses=refusals(401, 500))
router = APIRouter(responses=refusals(401, 500))


@create.post(
    "/v1/completions",
    response_model=None,
    responses=STREAMED | refusals(400, 404, 408, 413, 415, 429, 499, 503),
    openapi_extra=takes(CompletionRequest),
)
async def create_completion(request: Request) -> Response:
    """Complete prompts, whole or as a stream."""
    service = Service.of(request)
    served = service.worker.model
    completion_id = f"cmpl-{uuid.uuid4().hex}"
    body = await request.body()
    parsed = await offload(lambda: parse(body, CompletionRequest), len(body))
    completion = await offload_planning(
        request,
        lambda: Completion(completion_id, plan(completion_id, parsed, served), served),
        len(body) * parsed.choices_per_prompt,
        compiles=is_constrained(parsed),
    )
    return await respond(request, service, completion, ignored(parsed))


@router.post("/v1/completions/{name}/cancel", responses=refusals(404))
async def cancel_completion(name: str, service: Serving) -> Json:
    """End the running completion with this id; its own client gets an error."""
    if not await service.processes.cancel(name):
        raise not_found(f"No completion {quoted(name)} is running.", "not_found", "id")
    return {"id": name, "cancelled": True}


@router.get("/v1/models", responses=refusals(503))
async def list_models(service: Serving) -> Json:
    """Return a list of one: the served model."""
    return {"object": "list", "data": [_model_object(service.worker.model)]}


@router.get("/v1/models/{name:path}", responses=refusals(404, 503))
async def get_model(name: str, service: Serving) -> Json:
    """Return the served model."""
    served = service.worker.model
    if name != served.name:
        raise no_model(name, served.name)
    return _model_object(served)


def _model_object(served: ServedModel) -> Json:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "thoughtbubbles",
        "max_model_len": served.max_model_len,
        "fork_layers": list(served.config.fork_layers),
        "block_size": served.config.block_size,
        "max_block_size": served.config.max_block_size,
        "parameters": served.parameters,
        "revision": served.revision,
        "weights_version": served.weights_version,
    }
