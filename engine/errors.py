"""The engine's refusals.

EngineError
├── InvalidRequest (also ValueError)   the request can never be served
└── QueueFull                          it could be, later
    └── ClientQueueFull                the same, for the waiting requests of one client
"""

from functools import partial


class EngineError(Exception):
    """Any refusal by the engine."""


class InvalidRequest(EngineError, ValueError):  # noqa: N818 (named as the stdlib's queue.Full is)
    """A request that can never be served: `param` names the setting at fault, `code` the kind of fault."""

    def __init__(self, message: str, *, param: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle it with its attributes, for another process: by default an exception keeps its message alone."""
        return partial(InvalidRequest, param=self.param, code=self.code), self.args


class QueueFull(EngineError):  # noqa: N818
    """The waiting requests need as many streams as `max_waiting_streams` allows; a later try may succeed."""


class ClientQueueFull(QueueFull):
    """The client's waiting requests need as many streams as `max_client_share` allows."""
