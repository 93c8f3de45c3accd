"""Reports in the pipe from the engine's process: what comes out is what went in, wherever the bytes are cut."""

import queue
import random
from collections.abc import Iterator

import pytest

from tests.server.harness import MakeEngine
from thoughtbubbles.engine import SamplingParams
from thoughtbubbles.server.bridge.commands import Add, Command
from thoughtbubbles.server.bridge.loop import CommandsDone, Loaded, Report, Stepped, run_engine
from thoughtbubbles.server.bridge.packing import Unpacker, pack
from thoughtbubbles.server.core import EngineRequest
from thoughtbubbles.server.settings import ServerSettings

PARAMS = {
    "text alone": {},
    "all that events can have": {
        "logprobs": 2, "prompt_logprobs": 1, "stop": ("x",), "return_fork_counts": True, "return_fork_scores": True
    },
}  # fmt: skip


def reports_of(make_engine: MakeEngine, params: list[SamplingParams]) -> Iterator[Report]:
    """What an engine reports of a few requests, but for `Loaded`, whose model does not compare."""
    requests = [
        EngineRequest(request_id=str(i), prompt=list(b"packing")[: i + 1], params=each) for i, each in enumerate(params)
    ]
    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
    commands.put(Add(requests, 1.5))
    seen: list[Report] = []

    def on_report(report: Report) -> None:
        seen.append(report)
        if isinstance(report, Stepped) and not report.stats.num_requests_running:
            commands.put(None)

    run_engine(lambda: make_engine(ServerSettings(max_batch_size=4, max_waiting_streams=64)), commands, on_report)
    return (report for report in seen if not isinstance(report, Loaded))


@pytest.mark.parametrize("asked", [[name] for name in PARAMS] + [list(PARAMS)], ids=str)
def test_reports_come_as_they_were(make_engine: MakeEngine, asked: list[str]) -> None:
    params = [SamplingParams(max_tokens=4, seed=1, **PARAMS[name]) for name in asked]
    for report in reports_of(make_engine, params):
        (again,) = Unpacker().unpack(pack(report))
        assert again == report
        if isinstance(report, Stepped):
            assert all(type(event) is type(other) for event, other in zip(again.events, report.events, strict=True))


def test_a_step_without_events_or_report(make_engine: MakeEngine) -> None:
    stats = next(each.stats for each in reports_of(make_engine, [SamplingParams()]) if isinstance(each, CommandsDone))
    empty = Stepped([], None, stats)
    assert list(Unpacker().unpack(pack(empty))) == [empty]


@pytest.mark.parametrize("seed", range(5))
def test_bytes_may_be_cut_anywhere(make_engine: MakeEngine, seed: int) -> None:
    reports = list(reports_of(make_engine, [SamplingParams(max_tokens=3)] * 2))
    data = b"".join(map(pack, [*reports, None]))
    cuts = sorted(random.Random(seed).sample(range(len(data)), 20))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    unpacker = Unpacker()
    assert [report for piece in pieces for report in unpacker.unpack(piece)] == [*reports, None]


def test_the_exception_that_ended_the_engine() -> None:
    unpacker = Unpacker()
    (failure,) = unpacker.unpack(pack(RuntimeError("it burst")))
    assert (type(failure), str(failure)) == (RuntimeError, "it burst")
