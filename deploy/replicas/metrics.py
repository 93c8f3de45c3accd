"""The metrics of all replicas on one page: the same names, with the label `replica`."""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector


def labelled(metrics: Iterable[Metric], replica: str) -> list[Metric]:
    """Return the metrics with the label `replica` at each sample."""
    found = []
    for metric in metrics:
        copy = Metric(metric.name, metric.documentation, metric.type, metric.unit)
        copy.samples = [each._replace(labels={**each.labels, "replica": replica}) for each in metric.samples]
        found.append(copy)
    return found


def page(replicas: Iterable[Sequence[Metric]]) -> bytes:
    """Return Prometheus' text of all replicas, with the samples of each name together."""
    return generate_latest(_Merged(replicas))


class _Merged(Collector):
    def __init__(self, replicas: Iterable[Sequence[Metric]]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterator[Metric]:
        merged: dict[str, Metric] = {}
        for metrics in self._replicas:
            for metric in metrics:
                first = merged.setdefault(metric.name, metric)
                if first is not metric:
                    first.samples += metric.samples
        yield from merged.values()
