"""Whether and when to retry after a failure."""

from dataclasses import dataclass

from thoughtbubbles_client.errors import ApiError, DisconnectedError, ThoughtbubblesError, UnreachableError

RETRIED = frozenset({408, 409, 429})
"""Statuses that are retried, beside all from 500 on; the server's `x-should-retry` takes precedence."""
MOST_DOUBLINGS = 30
"""A larger power of two could overflow."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often a client retries, and how long it waits. Raises `ValueError` that names a wrong field."""

    retries: int = 2
    """How often a failed request is sent again."""
    first_seconds: float = 0.5
    """About how long to wait before the first retry; twice as long before each further one."""
    longest_seconds: float = 8.0
    """The longest wait."""
    patience_seconds: float = 120.0
    """If the server's Retry-After is longer, the client does not retry; the error has it as `retry_after`."""

    def __post_init__(self) -> None:
        for name in ("retries", "first_seconds", "longest_seconds", "patience_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")

    def pause(self, error: ThoughtbubblesError, failures: int, chance: float) -> float | None:
        """Return the seconds to wait after `error`, the `failures`-th in a row (from 1); None means no retry.

        `chance` is a new random number from 0 to 1, so that clients that failed together do not retry together. The
        wait is never shorter than the server's Retry-After.
        """
        retry_after = error.retry_after if isinstance(error, ApiError) else None
        if failures > self.retries or not may_pass(error) or (retry_after or 0) > self.patience_seconds:
            return None
        backoff = min(self.first_seconds * 2.0 ** min(failures - 1, MOST_DOUBLINGS), self.longest_seconds)
        return backoff * (1 + chance) / 2 if retry_after is None else retry_after + backoff * chance / 2


def may_pass(error: ThoughtbubblesError) -> bool:
    """Return whether the same request may succeed later. Completions change nothing, so all can be sent again."""
    if isinstance(error, ApiError):
        retried = error.status is not None and (error.status in RETRIED or error.status >= 500)
        return retried if error.should_retry is None else error.should_retry
    return isinstance(error, UnreachableError | DisconnectedError)
