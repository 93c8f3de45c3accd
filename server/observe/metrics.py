"""The metrics of GET /metrics in Prometheus' form: of the engine, and of the server (API.md §7)."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from thoughtbubbles.engine import EngineStats
from thoughtbubbles.server.observe.gateway_metrics import GatewayCollector
from thoughtbubbles.server.observe.histograms import PREFIX, Histograms
from thoughtbubbles.server.observe.meter import Meter, Snapshot
from thoughtbubbles.server.observe.summed import Families, Summed
from thoughtbubbles.server.version import build_info

GAUGES: Mapping[str, str] = {
    "num_requests_running": "Requests in the batch.",
    "num_requests_waiting": "Requests waiting for a batch slot.",
    "num_streams_waiting": "Most streams after the last fork layer that waiting requests may need.",
    "cache_usage_ratio": "Share of the fork-state cache's pages in use, from 0 to 1.",
    "cache_streams": "Streams cached in the fork-state cache.",
    "cache_bytes": "Memory of the fork-state cache's pages in use.",
}
CLOSE_REASONS = (
    "head_timeout", "body_timeout", "body_too_large", "write_timeout", "idle", "invalid_http", "headers_too_large",
    "limit",
)  # fmt: skip
"""Why the server closes connections. Each is a series from the start, so that rates include the first one."""
COUNTERS: Mapping[str, str] = {
    "prompt_tokens_total": "Prompt tokens of requests that have started, found in the cache or computed.",
    "generation_tokens_total": "Tokens generated.",
    "stream_tokens_total": "Streams computed in the last segment, for prompt and generated tokens.",
    "prefix_cache_queries_total": "Prompt tokens looked up in the prefix cache.",
    "prefix_cache_hits_total": "Prompt tokens found in the prefix cache, and not computed again.",
    "speculation_proposed_tokens_total": "Tokens guessed, and computed before it was known whether they are drawn.",
    "speculation_accepted_tokens_total": "Guessed tokens that were then drawn.",
    "non_finite_logits_total": "Requests ended because their logits were NaN or infinite.",
    "preemptions_total": "Requests preempted because the cache was full.",
    "cache_integrity_checks_total": "Checks of the fork-state cache's page counts, made when the engine is idle.",
    "cache_integrity_failures_total": "Checks that found the page counts wrong, which is a defect of the engine.",
}
LAYER_COUNTERS: Mapping[str, str] = {
    "forks_total": "Fork copies that survived the selection before a layer, of requests with pages.",
    "fork_deletions_total": "Streams that the selection before a layer removed, of requests with pages.",
}


class Metrics:
    """The registry of one server: the counters of its routes and connections, and the meter of its engine.

    `gateway` adds the metrics that inference gateways read.
    """

    def __init__(self, *, gateway: bool = False) -> None:
        self.registry = CollectorRegistry()
        self.meter = Meter(Histograms(self.registry))
        self.others: dict[int, Families] = {}
        """What the routes and connections of other processes have counted, by the number of the process."""
        self._own = CollectorRegistry()
        self.registry.register(Summed(self._own, self.others))
        self.rejected = Counter(
            f"{PREFIX}request_rejected", "Client requests refused, by error code.", ["reason"], registry=self._own
        )
        self.disconnects = Counter(
            f"{PREFIX}stream_disconnects",
            "Clients that disconnected before the end of their answer.",
            registry=self._own,
        )
        self.connections = Gauge(f"{PREFIX}http_connections", "Open connections.", registry=self._own)
        self.connections_closed = Counter(
            f"{PREFIX}http_connections_closed", "Connections that the server closed, by reason.", ["reason"],
            registry=self._own,
        )  # fmt: skip
        for reason in CLOSE_REASONS:
            self.connections_closed.labels(reason=reason)
        self.registry.register(_EngineCollector(self.meter))
        if gateway:
            self.registry.register(GatewayCollector(self.meter))

    def own(self) -> Families:
        """Return what the routes and connections of this process have counted."""
        return list(self._own.collect())


class _EngineCollector(Collector):
    """Reads the latest snapshot once a scrape, so that all numbers are of one moment."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics that the engine's thread counts."""
        snapshot = self._meter.snapshot
        up = snapshot is not None and snapshot.up
        yield GaugeMetricFamily(f"{PREFIX}engine_up", "1 while the engine runs.", value=float(up))
        if snapshot is not None:
            yield _info(
                "build_info", "What the server runs.", build_info(snapshot.model.device, snapshot.model.executor)
            )
            yield _info("model_info", "The served model.", snapshot.model.labels())
            yield from _requests(snapshot)
            yield _by_label("weight_loads", "Loads of weights that have ended, by outcome.", "outcome", snapshot.loads)
            yield from _engine(snapshot.stats)


def _info(name: str, help_text: str, labels: Mapping[str, str]) -> Metric:
    """Return a gauge that is always 1 and has these labels."""
    family = GaugeMetricFamily(PREFIX + name, help_text, labels=list(labels))
    family.add_metric(list(labels.values()), 1.0)
    return family


def _requests(snapshot: Snapshot) -> Iterator[Metric]:
    yield CounterMetricFamily(f"{PREFIX}request_accepted", "Requests accepted by the engine.", value=snapshot.accepted)
    yield _by_label("request_finished", "Requests finished, by reason.", "finish_reason", snapshot.finished)


def _by_label(name: str, help_text: str, label: str, counts: Mapping[str, int]) -> Metric:
    """Return a counter with a series for each value of its label."""
    family = CounterMetricFamily(PREFIX + name, help_text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _engine(stats: EngineStats) -> Iterator[Metric]:
    for name, help_text in GAUGES.items():
        yield GaugeMetricFamily(PREFIX + name, help_text, value=getattr(stats, name))
    for name, help_text in COUNTERS.items():
        yield CounterMetricFamily(PREFIX + name, help_text, value=getattr(stats, name))
    for name, help_text in LAYER_COUNTERS.items():
        family = CounterMetricFamily(PREFIX + name, help_text, labels=["layer"])
        for layer, count in getattr(stats, name).items():
            family.add_metric([str(layer)], count)
        yield family
