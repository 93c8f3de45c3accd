"""What operators and their tools ask: is it alive, is it ready, what is it, how is it doing (API.md §5, §7)."""

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from thoughtbubbles.server.protocol.errors import unavailable
from thoughtbubbles.server.protocol.requests import Json
from thoughtbubbles.server.routes.openapi import refusals
from thoughtbubbles.server.service import Serving
from thoughtbubbles.server.version import build_info

router = APIRouter()


@router.get("/health")
async def health() -> Json:
    """200 while the process lives."""
    return {"status": "ok"}


@router.get("/ready", responses=refusals(503))
async def ready(service: Serving) -> Json:
    """200 when a completion would be served now; else 503 with the reason."""
    reason = service.worker.unready(service.settings.stall_seconds)
    if reason is not None:
        raise unavailable(reason, refusal=False)  # whoever asks only whether, is not turned away
    return {"status": "ready"}


@router.get("/version", responses=refusals(503))
async def version(service: Serving) -> Json:
    """What runs, and what it computes with."""
    return {**build_info(service.worker.model.device)}


@router.get("/docs", include_in_schema=False)
@router.get("/redoc", include_in_schema=False)
async def docs() -> Response:
    """Lead who looks for FastAPI's own pages to the description: those pages load scripts from elsewhere."""
    return RedirectResponse("openapi.json")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: Serving) -> Response:
    """Prometheus' text."""
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
