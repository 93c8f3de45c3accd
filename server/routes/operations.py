"""Routes for operators and their tools: liveness, readiness, version and metrics (API.md §5, §7)."""

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST

from thoughtbubbles.server.protocol.errors import unavailable
from thoughtbubbles.server.protocol.requests import Json
from thoughtbubbles.server.routes.openapi import refusals
from thoughtbubbles.server.service import Serving
from thoughtbubbles.server.version import build_info

router = APIRouter(responses=refusals(500))


@router.get("/health")
async def health() -> Json:
    """Return 200 while the process runs."""
    return {"status": "ok"}


@router.get("/ready", responses=refusals(503))
async def ready(service: Serving) -> Json:
    """Return 200 if requests can be served now, else 503 with the reason."""
    reason = service.worker.unready(service.settings.stall_seconds) or service.processes.unready()
    if reason is not None:
        raise unavailable(reason, refusal=False)  # a probe is not counted as a rejected request
    return {"status": "ready"}


@router.get("/version", responses=refusals(503))
async def version(service: Serving) -> Json:
    """Return the versions of the server, of torch and of the model, the device and the executor."""
    model = service.worker.model
    return {
        **build_info(model.device, model.executor),
        "model": model.name,
        "model_revision": model.revision,
        "weights_version": model.weights_version,
    }


@router.get("/docs", include_in_schema=False)
@router.get("/redoc", include_in_schema=False)
async def docs() -> Response:
    """Redirect to the OpenAPI document. FastAPI's own pages load scripts from other servers."""
    return RedirectResponse("openapi.json")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: Serving) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(await service.processes.scrape(), media_type=CONTENT_TYPE_LATEST)
