"""Why a generation does not start, or ends early. `protocol.handlers` has the answer to each."""

from thoughtbubbles.engine import InvalidRequest, QueueFull, TokenEvent


class LoadError(Exception):
    """Weights are not replaced; the ones from before are served."""


class LoadRefusedError(LoadError):
    """The checkpoint cannot be read, or differs from the served model in more than its weights."""


class LoadInProgressError(LoadError):
    """Another load is in progress."""


class LoadTimeoutError(LoadError):
    """The requests that ran did not finish within `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)  # as pickle calls it again, where the engine has a process of its own
        self.seconds = seconds

    def __str__(self) -> str:
        return f"the requests that ran did not finish within {self.seconds:g} seconds"


class LoadFailedError(LoadError):
    """Something else failed, such as an allocation."""


class GenerationError(Exception):
    """A generation does not start, or ends early."""


class UnavailableError(GenerationError):
    """The server accepts no requests; `reason` says why, in one word."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)  # as pickle calls it again, between HTTP processes
        self.reason = reason

    def __str__(self) -> str:
        return f"the server is {self.reason}"


class RefusedError(GenerationError):
    """The engine refuses the generation's requests, for `refusal`.

    If its queue is full, it drains in about `retry_seconds`.
    """

    def __init__(self, refusal: InvalidRequest | QueueFull, retry_seconds: int) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal
        self.retry_seconds = retry_seconds


class TimeLimitError(GenerationError):
    """The time limit of a request, `seconds`, has passed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the request took longer than {seconds:g} seconds")
        self.seconds = seconds


class CancelledError(GenerationError):
    """Another call cancelled the generation."""


class ServerStoppedError(GenerationError):
    """The server stops before the generation is finished."""


class NonFiniteLogitsError(GenerationError):
    """The model's logits for a request are NaN or infinite."""


class GrammarFailedError(GenerationError):
    """The grammar of a request became too complex to go on, for `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the grammar is too complex: {reason}")
        self.reason = reason


class EngineFailedError(GenerationError):
    """The engine raised an exception; it runs no more requests."""


def failure_of(event: TokenEvent) -> GenerationError:
    """Return why a request failed whose last event has the finish reason `error`."""
    return NonFiniteLogitsError() if event.stop_reason is None else GrammarFailedError(str(event.stop_reason))
