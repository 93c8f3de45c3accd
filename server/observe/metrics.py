"""GET /metrics: the engine's census and the server's own counters in Prometheus' form (API.md §7)."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from thoughtbubbles.engine import EngineStats
from thoughtbubbles.server.observe.histograms import PREFIX, Histograms
from thoughtbubbles.server.observe.meter import Census, Meter
from thoughtbubbles.server.version import build_info

GAUGES: Mapping[str, str] = {
    "num_requests_running": "Requests in the batch.",
    "num_requests_waiting": "Requests that wait for a place in the batch.",
    "num_streams_waiting": "Most streams after the last fork layer that the tokens of those who wait may have.",
    "cache_usage_ratio": "Share of the fork-state cache's pages in use, from 0 to 1.",
    "cache_streams": "Streams whose keys and values the fork-state cache holds.",
    "cache_bytes": "Memory of the fork-state cache's pages in use.",
}
CLOSED_BECAUSE = (
    "head_timeout", "body_timeout", "body_too_large", "write_timeout", "idle", "invalid_http", "headers_too_large",
    "limit",
)  # fmt: skip
"""Why the server ends connections. Each is a series from the start, so that rates see the first one."""
COUNTERS: Mapping[str, str] = {
    "prompt_tokens_total": "Prompt tokens computed.",
    "generation_tokens_total": "Tokens generated.",
    "stream_tokens_total": "Streams computed in the last segment, for prompt and generated tokens.",
    "prefix_cache_queries_total": "Prompt tokens looked up among what earlier requests left.",
    "prefix_cache_hits_total": "Prompt tokens found there, which were not computed again.",
    "non_finite_logits_total": "Requests ended because their logits were NaN or infinite.",
    "preemptions_total": "Requests put back to wait because the cache was full.",
    "cache_integrity_checks_total": "Checks of the fork-state cache's page counts, made when the engine is idle.",
    "cache_integrity_failures_total": "Checks that found the page counts wrong, which is a defect of the engine.",
}
LAYER_COUNTERS: Mapping[str, str] = {
    "forks_total": "Fork copies that survived the selection before a layer.",
    "fork_deletions_total": "Streams that the selection before a layer removed.",
}


class Metrics:
    """One server's registry: what the routes count, what the engine's thread counts, and who they are."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.meter = Meter(Histograms(self.registry))
        self.rejected = Counter(
            f"{PREFIX}request_rejected", "Client requests refused, by error code.", ["reason"], registry=self.registry
        )
        self.disconnects = Counter(
            f"{PREFIX}stream_disconnects", "Streams whose client left before the end.", registry=self.registry
        )
        self.connections = Gauge(f"{PREFIX}http_connections", "Open connections.", registry=self.registry)
        self.connections_closed = Counter(
            f"{PREFIX}http_connections_closed", "Connections that the server ended, by reason.", ["reason"],
            registry=self.registry,
        )  # fmt: skip
        for reason in CLOSED_BECAUSE:
            self.connections_closed.labels(reason=reason)
        self.registry.register(_EngineCollector(self.meter))


class _EngineCollector(Collector):
    """Reads the latest census once a scrape, so that its numbers belong together."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def collect(self) -> Iterator[Metric]:
        """One sample or more of every number that the engine's thread counts."""
        census = self._meter.census
        up = census is not None and census.up
        yield GaugeMetricFamily(f"{PREFIX}engine_up", "1 while the engine runs.", value=float(up))
        if census is not None:
            yield _info("build_info", "What serves.", build_info(census.model.device, census.model.executor))
            yield _info("model_info", "What is served.", census.model.labels())
            yield from _requests(census)
            yield from _engine(census.stats)


def _info(name: str, meaning: str, labels: Mapping[str, str]) -> Metric:
    """A gauge that is always 1, for its labels."""
    family = GaugeMetricFamily(PREFIX + name, meaning, labels=list(labels))
    family.add_metric(list(labels.values()), 1.0)
    return family


def _requests(census: Census) -> Iterator[Metric]:
    yield CounterMetricFamily(f"{PREFIX}request_accepted", "Requests that the engine took.", value=census.accepted)
    finished = CounterMetricFamily(f"{PREFIX}request_finished", "Requests done, by reason.", labels=["finish_reason"])
    for reason, count in census.finished.items():
        finished.add_metric([reason], count)
    yield finished


def _engine(stats: EngineStats) -> Iterator[Metric]:
    for name, meaning in GAUGES.items():
        yield GaugeMetricFamily(PREFIX + name, meaning, value=getattr(stats, name))
    for name, meaning in COUNTERS.items():
        yield CounterMetricFamily(PREFIX + name, meaning, value=getattr(stats, name))
    for name, meaning in LAYER_COUNTERS.items():
        family = CounterMetricFamily(PREFIX + name, meaning, labels=["layer"])
        for layer, count in getattr(stats, name).items():
            family.add_metric([str(layer)], count)
        yield family
