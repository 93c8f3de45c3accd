"""How much the JSON of one body may hold: it is read in one call, while which no other thread runs Python."""

from thoughtbubbles.server.protocol.errors import ApiError

MOST_VALUES = 1 << 19
"""Numbers and others in arrays and objects: more token ids than a queue has streams for."""
MOST_NESTED = 1 << 16
"""Strings, arrays and objects, which take ten times as long; names in objects among them, as a vocabulary's ids are."""


def check_size(body: bytes) -> None:
    """Raise `ApiError` 413 if `body` holds more than is read at once, whatever stands in its strings."""
    if _fits(body.count(b","), body.count(b'"') + body.count(b"[") + body.count(b"{")):
        return
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings = plain.count(b'"') // 2
    if strings <= MOST_NESTED:
        outside = b"".join(plain.split(b'"')[::2])
        if _fits(outside.count(b","), strings + outside.count(b"[") + outside.count(b"{")):
            return
    message = f"The body holds more than {MOST_VALUES} values, or {MOST_NESTED} strings, arrays and objects."
    raise ApiError(413, message, code="request_too_large")


def _fits(values: int, nested: int) -> bool:
    return values <= MOST_VALUES and nested <= MOST_NESTED
