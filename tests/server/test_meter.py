"""What the meter makes of reports: each token has its time, however many of a request a step has."""

from dataclasses import replace
from functools import partial

import pytest

from tests.server.harness import MakeEngine, Serve
from tests.server.test_operation import samples
from thoughtbubbles.engine import StepReport, TokenEvent
from thoughtbubbles.server.bridge.loop import Accepted, Loaded, Stepped
from thoughtbubbles.server.observe import meter as meter_module
from thoughtbubbles.server.observe.metrics import Metrics
from thoughtbubbles.server.settings import ServerSettings


def test_a_time_for_every_token(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `a`, which has two tokens in each of two steps, and of `b`, which starts in the second one."""
    engine, model = make_engine(ServerSettings())
    stats = replace(engine.stats(), num_requests_running=2)
    metrics = Metrics()
    metrics.meter.count(Loaded(model, stats))
    metrics.meter.count(Accepted(["a"], 9.0))
    metrics.meter.count(Accepted(["b"], 8.0))
    for now, names in ((10.0, "aa"), (14.0, "aab")):
        monkeypatch.setattr(meter_module.time, "monotonic", partial(float, now))
        events = [TokenEvent(name, 1) for name in names]
        metrics.meter.count(Stepped(events, StepReport(phase="decode", seconds=1, batch_size=2, fork_counts=()), stats))

    def of(name: str) -> tuple[float | None, float | None]:
        """Number and sum of what a histogram observed."""
        read = metrics.registry.get_sample_value
        return read(f"thoughtbubbles_{name}_seconds_count"), read(f"thoughtbubbles_{name}_seconds_sum")

    assert of("time_to_first_token") == (2, 1.0 + 6.0)
    assert of("inter_token_latency") == (3, 4.0)


def test_a_prompt_that_is_only_scored_has_no_first_token(serve: Serve) -> None:
    with serve() as server:
        server.complete(prompt="abc", max_tokens=0, echo=True, logprobs=0)
        server.complete(prompt="abc", max_tokens=1)
        found = samples(server)
    assert found["request_finished_total", "length"] == 2
    assert found["e2e_request_latency_seconds_count",] == 2
    assert found["time_to_first_token_seconds_count",] == 1
