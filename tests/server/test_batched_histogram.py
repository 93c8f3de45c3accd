"""The histogram that takes many equal values at once."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from thoughtbubbles.server.observe.batched_histogram import BatchedHistogram

BOUNDS = (0.5, 1.0, 2.5)
SEEN = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 2.5, 3.0]), st.integers(1, 5)))


@given(SEEN)
def test_it_shows_what_the_librarys_own_shows(seen: list[tuple[float, int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    batched = BatchedHistogram("waited_seconds", "Waiting.", BOUNDS, ours)
    histogram = Histogram("waited_seconds", "Waiting.", registry=theirs, buckets=BOUNDS)
    for amount, times in seen:
        batched.observe(amount, times)
        for _ in range(times):
            histogram.observe(amount)
    shown = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert generate_latest(ours).decode().splitlines() == shown
