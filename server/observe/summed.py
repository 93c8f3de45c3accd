"""Counters of several processes as one."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from operator import add

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

Families = Sequence[Metric]
"""What a registry has counted; it can be sent to another process."""


class Summed(Collector):
    """Exports what a registry counts, plus what the same registry of each other process has counted."""

    def __init__(self, own: CollectorRegistry, others: Mapping[int, Families]) -> None:
        self._own = own
        self._others = others

    def collect(self) -> Iterator[Metric]:
        """Yield the families of the registry, with sums in place of values."""
        others = [{family.name: family for family in families} for families in self._others.values()]
        for family in self._own.collect():
            yield _sum([family, *(each[family.name] for each in others)]) if others else family


def _sum(families: Sequence[Metric]) -> Metric:
    """Return a family with the sum of each series, and the earliest time that one was created."""
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for sample in chain.from_iterable(family.samples for family in families):
        series = (sample.name, tuple(sample.labels.items()))
        together = min if sample.name.endswith("_created") else add
        values[series] = together(values[series], sample.value) if series in values else sample.value
    total = Metric(families[0].name, families[0].documentation, families[0].type, families[0].unit)
    for (name, labels), value in values.items():
        total.add_sample(name, dict(labels), value)
    return total
