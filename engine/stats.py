"""Numbers about the engine, for whoever exports them."""

from collections.abc import Mapping
from dataclasses import dataclass

from thoughtbubbles.engine.batch import Phase


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """The engine now (gauges), and since it was made (`…_total`, which never fall)."""

    num_requests_running: int
    num_requests_waiting: int
    num_streams_waiting: int
    """The most streams, after the last fork layer, that the tokens of those who wait may have."""
    cache_streams: int
    """Live streams held, over all segments."""
    cache_bytes: int
    """Bytes of cache pages in use."""
    cache_usage_ratio: float
    """The fullest segment's share of pages in use, 0 … 1."""
    prompt_tokens_total: int
    generation_tokens_total: int
    stream_tokens_total: int
    """Stream-rows computed in the final segment."""
    admitted_streams_total: int
    """What `num_streams_waiting` counted of requests that got a place in the batch, each time they got one."""
    prefix_cache_queries_total: int
    """Tokens of sequences that were looked for in the cache."""
    prefix_cache_hits_total: int
    """Of those, tokens that were found."""
    non_finite_logits_total: int
    """Requests that ended because their logits were NaN or infinite."""
    preemptions_total: int
    forks_total: Mapping[int, int]
    """For each fork layer, fork copies that survived it, under the causal rule."""
    fork_deletions_total: Mapping[int, int]
    """For each fork layer, streams that arrived and were not kept, under the causal rule."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step did."""

    phase: Phase
    seconds: float
    batch_size: int
    """Requests in it."""
    fork_counts: tuple[int, ...]
    """Streams, after the last fork layer, of each token that was computed."""
