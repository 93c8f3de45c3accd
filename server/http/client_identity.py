"""Who a client is, for its share of the queue."""

from starlette.requests import Request

from thoughtbubbles.server.keys import ApiKeys, digest_of


def client_of(request: Request, keys: ApiKeys) -> str:
    """Return a name for the sender of `request`: of its API key, where keys are needed, else its address.

    The key has been checked. Where none is needed, a client could send a new one with each request. Return "" for a
    Unix socket, whose clients have no address.
    """
    if keys.digests:
        return f"key {digest_of(request.headers.get('authorization', '').encode('latin-1')).hex()}"
    return "" if request.client is None else f"address {request.client.host}"
