"""Numbers about the engine, for exporters."""

from collections.abc import Mapping
from dataclasses import dataclass

from thoughtbubbles.engine.batch import Phase


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """The engine's present numbers, and counts since it was made (`…_total`)."""

    num_requests_running: int
    num_requests_waiting: int
    num_streams_waiting: int
    """The most streams, after the last fork layer, that the tokens of waiting requests may have."""
    cache_streams: int
    """Streams cached for running requests, over all segments."""
    cache_bytes: int
    """Bytes of cache pages in use."""
    cache_usage_ratio: float
    """The fullest segment's share of pages in use, 0 … 1."""
    prompt_tokens_total: int
    """Tokens of the prompts of requests that have started, found in the cache or computed."""
    generation_tokens_total: int
    stream_tokens_total: int
    """Streams computed in the last segment."""
    admitted_streams_total: int
    """Sum of what `num_streams_waiting` counted of requests when they were admitted, each time they were."""
    prefix_cache_queries_total: int
    """Tokens of sequences that were looked up in the prefix cache."""
    prefix_cache_hits_total: int
    """Of those, tokens that were found."""
    speculation_proposed_tokens_total: int
    """Tokens that were guessed, and computed before they were known to be right."""
    speculation_accepted_tokens_total: int
    """Of those, tokens that were then drawn."""
    non_finite_logits_total: int
    """Requests that ended because their logits were NaN or infinite."""
    cache_integrity_checks_total: int
    """Checks of the fork-state cache's page counts."""
    cache_integrity_failures_total: int
    """Of those, checks that found them wrong."""
    preemptions_total: int
    forks_total: Mapping[int, int]
    """For each fork layer, fork copies that survived it, of requests with pages."""
    fork_deletions_total: Mapping[int, int]
    """For each fork layer, streams that it deleted, of requests with pages."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """A report of one step."""

    phase: Phase
    seconds: float
    batch_size: int
    """Requests that it prefilled, or if none those that it decoded."""
    fork_counts: tuple[int, ...]
    """Streams after the last fork layer of each token that landed."""
