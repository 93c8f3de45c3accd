"""Fork counts and usage of an engine that prefills and decodes with kernels equal those of the naive forward."""

import pytest

from tests.engine.kernels.conftest import MakeEngine, on_kernels
from tests.engine.test_counts import Case, check, counts_of, params_of, run
from thoughtbubbles.model import Thoughtbubbles

SEQUENCES = [[5, 9, 3, 3, 3, 7, 11, 40, 41, 42, 43, 44], [8] * 11, [(7 * i * i + 3) % 251 for i in range(12)]]


def test_counts_are_the_oracles(small_model: Thoughtbubbles, make_engine: MakeEngine) -> None:
    """Prompts in chunks of 5 tokens, of which each request's last alone may end it or show its pending token."""
    kinds: list[dict[str, object]] = [
        {"max_tokens": 0},
        {"max_tokens": 4},
        {"max_tokens": 4, "return_fork_counts": True},
        {"max_tokens": 4, "top_p": 0.8},
        {"max_tokens": 4, "fork_selection": "dynamic", "return_fork_counts": True},
        {"max_tokens": 2, "fork_ratio": 1.4},
    ]
    cases = [Case(SEQUENCES[i % 3], params_of(seed=i, **kind), i % 2) for i, kind in enumerate(kinds)]
    engine = on_kernels(make_engine(small_model, max_prefill_tokens=5), [8])
    for case, completion in zip(cases, run(engine, cases), strict=True):
        check(small_model, case, completion)


@pytest.mark.slow
def test_a_preempted_request_reports_its_own_tokens_count(small_model: Thoughtbubbles, make_engine: MakeEngine) -> None:
    settings = {"cache_bytes": 21_500, "max_model_len": 20, "max_prefill_tokens": 5}
    engine = on_kernels(make_engine(small_model, **settings), [8])
    params = params_of(seed=1, max_tokens=8, return_fork_counts=True)
    cases = [Case(ids, params, 0) for ids in SEQUENCES[:2]]
    completions = run(engine, cases)
    assert engine.stats().preemptions_total > 0
    for case, completion in zip(cases, completions, strict=True):
        check(small_model, case, completion)


def test_a_request_that_generates_nothing_ends_when_its_whole_prompt_is_computed(
    small_model: Thoughtbubbles, make_engine: MakeEngine
) -> None:
    engine = on_kernels(make_engine(small_model, max_prefill_tokens=5), [8])
    engine.add("a", SEQUENCES[2], params_of(max_tokens=0))
    assert [engine.step() for _ in range(2)] == [[], []]
    [event] = engine.step()
    assert event.usage is not None
    assert event.usage.stream_tokens == sum(counts_of(small_model, SEQUENCES[2], params_of()))
    assert not engine.has_work


def test_a_recomputed_request_admitted_beside_a_prefill_has_its_own(
    small_model: Thoughtbubbles, make_engine: MakeEngine
) -> None:
    """Admitted while the device computes, it starts in the step after: no time of its usage is negative."""
    engine = on_kernels(make_engine(small_model, max_prefill_tokens=12), [16])
    cases = [Case(SEQUENCES[0], params_of(max_tokens=2), 0),
             Case(SEQUENCES[2], params_of(max_tokens=2, fork_selection="dynamic"), 0)]  # fmt: skip
    for case, completion in zip(cases, run(engine, cases), strict=True):
        check(small_model, case, completion)
        usage = completion.events[-1].usage
        assert usage is not None
        assert min(usage.queue_seconds, usage.prefill_seconds, usage.decode_seconds) >= 0
