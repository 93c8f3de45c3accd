"""The name of a client, for its share of the queue."""

from starlette.requests import Request

from thoughtbubbles.server.keys import ApiKeys, digest_of


def client_of(request: Request, keys: ApiKeys) -> str:
    """Return the client's name: the digest of its API key if keys are required, else its address.

    The key must have been checked. Without keys a client could send another one with each request. Return "" for a Unix
    socket, whose clients have no address.
    """
    if keys.digests:
        return f"key {digest_of(request.headers.get('authorization', '').encode('latin-1')).hex()}"
    return "" if request.client is None else f"address {request.client.host}"
