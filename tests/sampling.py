"""The marker `sample(n)`: of a test with many cases n run by default, and the others are slow.

Which ones is decided by the test's name alone: of the cases in an order shuffled by it, each time the one that adds
most values and pairs of values not covered yet. So a sample covers what it can of the combinations of parameters.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

import pytest

Case = frozenset[tuple[str, int]]
"""Parameters and the place of each one's value."""


def sample(cases: Sequence[Case], count: int, seed: str) -> list[int]:
    """Return the places of `count` of the cases, chosen greedily so that they cover most values and pairs of values."""
    left = list(range(len(cases)))
    random.Random(seed).shuffle(left)
    covered: set[tuple[tuple[str, int], ...]] = set()
    chosen: list[int] = []
    while left and len(chosen) < count:
        best = max(left, key=lambda place: len(set(_covers(cases[place])) - covered))
        left.remove(best)
        chosen.append(best)
        covered.update(_covers(cases[best]))
    return sorted(chosen)


def _covers(case: Case) -> Iterator[tuple[tuple[str, int], ...]]:
    for size in (1, 2):
        yield from combinations(sorted(case), size)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what a `sample` marker leaves out, before pytest deselects by marker."""
    families: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("sample"):
            families[item.nodeid.partition("[")[0]].append(item)
    for name, family in families.items():
        marker = family[0].get_closest_marker("sample")
        assert marker
        chosen = set(sample([frozenset(item.callspec.indices.items()) for item in family], marker.args[0], name))
        for place, item in enumerate(family):
            if place not in chosen:
                item.add_marker(pytest.mark.slow)
