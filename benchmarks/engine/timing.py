"""Time on a CUDA device."""

import statistics
from collections.abc import Callable

import torch

REPEATS, RUNS = 10, 7


def device_seconds(work: Callable[[], object]) -> float:
    """Return the seconds of work on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def microseconds(launch: Callable[[], object]) -> float:
    """Return the median time of a launch, in a graph of several."""
    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            launch()
    return 1e6 * statistics.median(device_seconds(graph.replay) for _ in range(RUNS)) / REPEATS
