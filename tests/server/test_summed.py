"""Counters of several processes, exported as one."""

import pickle

from prometheus_client import CollectorRegistry, generate_latest

from thoughtbubbles.server.observe.metrics import Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"thoughtbubbles_{name}", labels)


def test_sums_over_processes() -> None:
    """Of each series; one that a process has not is 0 there, and the earliest time of creation stays."""
    first, *others = [Metrics() for _ in range(3)]
    for number, metrics in enumerate((first, *others), start=1):
        metrics.disconnects.inc(number)
        metrics.connections.inc(10 * number)
    first.rejected.labels(reason="draining").inc()
    others[0].rejected.labels(reason="draining").inc(4)
    others[1].rejected.labels(reason="queue_full").inc(7)
    created = value(first, "stream_disconnects_created")
    for number, metrics in enumerate(others, start=1):
        first.others[number] = pickle.loads(pickle.dumps(metrics.own()))  # as they come from another process
    assert value(first, "stream_disconnects_total") == 6
    assert value(first, "http_connections") == 60
    assert value(first, "request_rejected_total", reason="draining") == 5
    assert value(first, "request_rejected_total", reason="queue_full") == 7
    assert value(first, "http_connections_closed_total", reason="idle") == 0
    assert value(first, "stream_disconnects_created") == created
    assert first.own()[0].samples[0].value == 1, "what one process tells is its own"


def test_alone_nothing_is_changed() -> None:
    metrics = Metrics()
    metrics.rejected.labels(reason="draining").inc()
    own = CollectorRegistry()
    for collector in (metrics.rejected, metrics.disconnects, metrics.connections, metrics.connections_closed):
        own.register(collector)
    assert generate_latest(own) in generate_latest(metrics.registry)
