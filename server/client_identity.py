"""Who a client is, for its share of the queue."""

from hashlib import sha256

from starlette.requests import Request

from thoughtbubbles.server.keys import SCHEME, ApiKeys


def client_of(request: Request, keys: ApiKeys) -> str:
    """Return a name for the sender of `request`: of its API key, where keys are needed, else its address.

    The key has been checked; where none is needed, a client could show a new one with each request. Nothing is known
    of who comes through a Unix socket, and "" returned.
    """
    if keys.digests:
        key = request.headers.get("authorization", "").encode("latin-1")[len(SCHEME) :].strip()
        return f"key {sha256(key).hexdigest()}"
    return "" if request.client is None else f"address {request.client.host}"
