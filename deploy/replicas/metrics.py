"""The metrics of all replicas on one page: the same names, with the label `replica`."""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector


def labelled(metrics: Iterable[Metric], replica: str) -> list[Metric]:
    """These, each sample with the label `replica`."""
    told = []
    for metric in metrics:
        copy = Metric(metric.name, metric.documentation, metric.type, metric.unit)
        copy.samples = [each._replace(labels={**each.labels, "replica": replica}) for each in metric.samples]
        told.append(copy)
    return told


def page(replicas: Iterable[Sequence[Metric]]) -> bytes:
    """Prometheus' text, which wants all samples of a name together."""
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
