"""Routes of functions that take the request alone, which FastAPI calls without its dependencies."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class DirectRoute(APIRoute):
    """Calls its function with the request. FastAPI's own handler takes longer than to read a short request."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function of the route."""
        return self.endpoint
