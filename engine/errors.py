"""What the engine refuses, and why.

EngineError
├── InvalidRequest (also ValueError)   the request can never be served as it stands
└── QueueFull                          it could be, later
    └── ClientQueueFull                the same, because of what its client has waiting
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
        """To pickle it, for a process that asked: an exception is made again of its message alone."""
        return partial(InvalidRequest, param=self.param, code=self.code), self.args


class QueueFull(EngineError):  # noqa: N818
    """Those who wait need as many streams as `max_waiting_streams` allows; try again when some have had their turn."""


class ClientQueueFull(QueueFull):
    """The client's waiting requests need as many streams as `max_client_share` allows."""
