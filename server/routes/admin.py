"""POST /admin/load: replace the weights of the served model by those of another checkpoint, while it serves."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from thoughtbubbles.server.protocol.errors import no_admin_key, no_administration
from thoughtbubbles.server.protocol.requests import Json, LoadRequest
from thoughtbubbles.server.protocol.validation import parse
from thoughtbubbles.server.routes.openapi import refusals, takes
from thoughtbubbles.server.service import Service, Serving
from thoughtbubbles.server.version import fingerprint

router = APIRouter()

PATHS = frozenset({"/admin/load"})
"""Paths that need an admin key instead of an API key."""


async def _administered(request: Request, service: Serving) -> Service:
    """Return the service of a request that has an admin key."""
    if not service.admin_keys.digests:
        raise no_administration()
    if not service.admin_keys.admit(request.headers.get("authorization", "").encode("latin-1")):
        raise no_admin_key()
    return service


Administered = Annotated[Service, Depends(_administered)]
"""The type of a route's parameter that gets the service, if the request has an admin key."""


@router.post(
    "/admin/load", responses=refusals(400, 401, 403, 408, 409, 413, 415, 500, 503), openapi_extra=takes(LoadRequest)
)
async def load_weights(request: Request, service: Administered) -> Json:
    """Replace the weights, and answer when the new ones are served.

    Requests that have started finish with the weights from before; those that wait start with the new ones.
    """
    checkpoint = parse(await request.body(), LoadRequest).checkpoint
    before = service.worker.model.weights_version
    model = await service.processes.load_weights(checkpoint)
    return {
        "checkpoint": checkpoint,
        "model": model.name,
        "model_revision": model.revision,
        "weights_version": model.weights_version,
        "previous_weights_version": before,
        "system_fingerprint": fingerprint(model.weights_version),
    }
