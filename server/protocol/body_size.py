"""A limit on the JSON values of a body: it is parsed in one call, and meanwhile no other thread runs Python."""

from thoughtbubbles.server.protocol.errors import too_many_values

MAX_VALUES = 1 << 19
"""Most numbers and other values in arrays and objects; a queue has streams for fewer token ids."""
MAX_NESTED = 1 << 16
"""Most strings, arrays and objects, which take ten times as long; names in objects count, such as token ids."""


def check_size(body: bytes) -> None:
    """Raise `ApiError` 413 if `body` has more values than are parsed at once. Text inside strings does not count."""
    if _fits(body.count(b","), body.count(b'"') + body.count(b"[") + body.count(b"{")):
        return
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings = plain.count(b'"') // 2
    if strings <= MAX_NESTED:
        outside = b"".join(plain.split(b'"')[::2])
        if _fits(outside.count(b","), strings + outside.count(b"[") + outside.count(b"{")):
            return
    raise too_many_values(MAX_VALUES, MAX_NESTED)


def _fits(values: int, nested: int) -> bool:
    return values <= MAX_VALUES and nested <= MAX_NESTED
