"""The metrics that inference gateways read, under vLLM's names: queue, cache use and prefix hits."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from thoughtbubbles.server.observe.meter import Meter

GATEWAY_GAUGES: Mapping[str, tuple[str, str]] = {
    "vllm:num_requests_waiting": ("num_requests_waiting", "Requests waiting for a batch slot."),
    "vllm:num_requests_running": ("num_requests_running", "Requests in the batch."),
    "vllm:kv_cache_usage_perc": ("cache_usage_ratio", "Share of the cache's pages in use, from 0 to 1."),
}
"""Name for gateways: our own name, and the text of HELP. The Gateway API inference extension's protocol needs these."""
GATEWAY_COUNTERS: Mapping[str, tuple[str, str]] = {
    "vllm:prefix_cache_queries_total": ("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."),
    "vllm:prefix_cache_hits_total": ("prefix_cache_hits_total", "Prompt tokens found in the prefix cache."),
}


class GatewayCollector(Collector):
    """Reads the latest snapshot once a scrape, with the model's name as vLLM's label `model_name`."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; none before the engine is loaded."""
        snapshot = self._meter.snapshot
        if snapshot is None:
            return
        for name, (ours, help_text) in GATEWAY_GAUGES.items():
            gauge = GaugeMetricFamily(name, help_text, labels=["model_name"])
            gauge.add_metric([snapshot.model.name], getattr(snapshot.stats, ours))
            yield gauge
        for name, (ours, help_text) in GATEWAY_COUNTERS.items():
            counter = CounterMetricFamily(name, help_text, labels=["model_name"])
            counter.add_metric([snapshot.model.name], getattr(snapshot.stats, ours))
            yield counter
