"""Whether to ask again after a failure, and when."""

from dataclasses import dataclass

from thoughtbubbles_client.errors import ApiError, DisconnectedError, ThoughtbubblesError, UnreachableError

RETRIED = frozenset({408, 409, 429})
"""Statuses that may pass, beside all from 500 on; the server's `x-should-retry` outdoes them."""
MOST_DOUBLINGS = 30
"""So that no number of retries overflows."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often a client asks again, and how long it waits before. Raises `ValueError` naming what cannot be."""

    retries: int = 2
    """How often a request that failed is sent again."""
    first_seconds: float = 0.5
    """About how long to wait before the first time; twice as long before each that follows."""
    longest_seconds: float = 8.0
    """Most that this grows to."""
    patience_seconds: float = 120.0
    """A server that wants to be left alone for longer is not asked again; the error tells when it wants to be."""

    def __post_init__(self) -> None:
        for name in ("retries", "first_seconds", "longest_seconds", "patience_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")

    def pause(self, error: ThoughtbubblesError, failures: int, chance: float) -> float | None:
        """Seconds to wait after `error`, the `failures`-th in a row (from 1); None not to ask again.

        `chance`, from 0 to 1, is a new random number: clients that failed together do not come back together. A
        server's Retry-After is never cut short.
        """
        told = error.retry_after if isinstance(error, ApiError) else None
        if failures > self.retries or not may_pass(error) or (told or 0) > self.patience_seconds:
            return None
        backoff = min(self.first_seconds * 2.0 ** min(failures - 1, MOST_DOUBLINGS), self.longest_seconds)
        return backoff * (1 + chance) / 2 if told is None else told + backoff * chance / 2


def may_pass(error: ThoughtbubblesError) -> bool:
    """Whether the same request may succeed later; completions change nothing, so a broken one can be asked again."""
    if isinstance(error, ApiError):
        passing = error.status is not None and (error.status in RETRIED or error.status >= 500)
        return passing if error.should_retry is None else error.should_retry
    return isinstance(error, UnreachableError | DisconnectedError)
