"""The fields of one exchange, which logs and traces share."""

from typing import Any

from thoughtbubbles.server.bridge.generation import Generation
from thoughtbubbles.server.observe.exchange import Exchange


def summary(exchange: Exchange) -> dict[str, Any]:
    """Return the fields of an exchange that is over, without those that are None.

    They hold no header and no text of the client except the request's id.
    """
    generation = exchange.generation
    known = {
        "request_id": exchange.http_request_id,
        "method": exchange.method,
        "route": exchange.route,
        "status": exchange.status,
        "seconds": round(exchange.seconds, 6),
        **({} if generation is None else _generation_fields(generation)),
    }
    return {name: value for name, value in known.items() if value is not None}


def _generation_fields(generation: Generation) -> dict[str, Any]:
    """Return the tokens of all its requests, and the longest time that one of them spent in each phase."""
    usages = generation.usages

    def longest(name: str) -> float | None:
        return round(max(getattr(usage, name) for usage in usages), 6) if usages else None

    return {
        "id": generation.completion_id,
        "prompt_tokens": sum(len(request.prompt) for request in generation.requests),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
        "stream_tokens": sum(usage.stream_tokens for usage in usages),
        "finish_reason": ",".join(sorted(set(generation.finish_reasons))) or None,
        "queue_seconds": longest("queue_seconds"),
        "prefill_seconds": longest("prefill_seconds"),
        "decode_seconds": longest("decode_seconds"),
    }
