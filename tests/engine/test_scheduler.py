"""Who runs next: first come, first served, within the batch and the pages; the last to come is preempted first."""

import random

import pytest
import torch

from thoughtbubbles.engine import ClientQueueFull, EngineConfig, QueueFull, SamplingParams
from thoughtbubbles.engine.batch import Plan
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.detokenizer import Detokenizer
from thoughtbubbles.engine.lookup import Guessing, Lookup
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.scheduler import Scheduler
from thoughtbubbles.model import ModelConfig, Selection, Tokenizer

CONFIG = ModelConfig(vocab_size=11, block_size=32, max_block_size=64, n_layer=2, n_head=1, n_embd=8, fork_layers=(1,))
TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(10)}, "digits")


def scheduler(
    requests_of_memory: float = 10, *, max_prefill_tokens: int = 512, mixes: bool = False, **settings: float
) -> Scheduler:
    """With memory for so many requests of 32 tokens."""
    one = 8 * 4 * (2 * 8 * 4 + 8) + 16 * 4 * (2 * 8 * 4)
    cache = ForkCache(CONFIG, max_tokens=32, total_bytes=int(requests_of_memory * one), page_size=4,
                      like=torch.zeros(()))  # fmt: skip
    config = EngineConfig(**{"max_batch_size": 8, **settings})  # type: ignore[arg-type]
    return Scheduler(config, cache, max_prefill_tokens, mixes=mixes)


def request(
    name: str, prompt: int = 4, max_tokens: int = 4, rule: str = "causal", client: str = "", **reports: bool
) -> Request:
    selection = Selection.of(CONFIG, rule)  # type: ignore[arg-type]
    params = SamplingParams(max_tokens=max_tokens, **reports)  # type: ignore[arg-type]
    return Request(name, (ord(name),) * prompt, params, selection, 0, Detokenizer(TOKENIZER), client)


def run(it: Scheduler, *, ahead: bool = False) -> tuple[str, str]:
    """Plan a step and take its tokens as computed, each with the most streams it may have.

    `ahead`: whether requests are admitted before they are. Of a step that prefills, its prefills are returned.
    """
    plan = it.schedule()
    if ahead:
        it.admit()
    land(it, plan)
    it.cache.check_integrity()
    return plan.phase, "".join(each.id for each in plan.requests[: plan.num_prefills or None])


def land(it: Scheduler, plan: Plan) -> None:
    """Take the tokens of a plan as computed, each with the most streams it may have."""
    for each, tokens in zip(plan.requests, plan.num_tokens, strict=True):
        if each.state:
            before = each.state.tokens
            for segment in range(2):
                ends = [(t + 1) << segment for t in range(before, before + tokens)]
                it.cache.grow(each.state, segment, ends)
            it.cache.extend(each.state, each.pending[:tokens])
    it.update(plan.requests)
    for each in plan.requests:
        if each in it.running:
            each.output.append(ord(each.id))


def test_new_requests_are_taken_in_as_soon_as_they_come() -> None:
    it = scheduler()
    it.add(request("a"))
    assert run(it) == ("prefill", "a")
    assert run(it) == ("decode", "a")
    it.add(request("b"))
    assert run(it) == ("prefill", "b")
    assert run(it) == ("decode", "ab")


def test_a_step_prefills_more_while_nothing_decodes() -> None:
    it = scheduler(max_prefill_tokens=5, mixes=True)
    it.max_lone_prefill_tokens = 12
    for name in "abcd":
        it.add(request(name))
    assert run(it) == ("prefill", "abc")
    it.add(request("e"))
    assert run(it) == ("prefill", "d")
    assert run(it) == ("prefill", "e")


def test_the_rest_of_many_prompts_is_admitted_after_the_first_of_them_are_planned() -> None:
    it = scheduler()
    it.part_tokens = 8
    for name, tokens in (("a", 4), ("b", 3), ("c", 4), ("d", 9), ("e", 1)):
        it.add(request(name, prompt=tokens))
    first = it.schedule()
    assert ([each.id for each in first.requests], first.num_tokens, first.continues) == (["a", "b"], [4, 3], False)
    assert [each.id for each in it.waiting] == ["c", "d", "e"]
    rest = it.schedule_rest()
    assert rest
    assert ([each.id for each in rest.requests], rest.num_tokens, rest.continues) == (["c", "d", "e"], [4, 9, 1], True)
    assert it.schedule_rest() is None


@pytest.mark.parametrize(
    "requests",
    [
        [request("a", 4), request("b", 11)],  # 15 tokens
        [request("a", 9), request("b", 9, return_fork_counts=True)],
        [request("a", 9), request("b", 9, return_fork_scores=True)],
    ],
    ids=["few tokens", "a report", "no pages"],
)
def test_a_step_is_planned_at_once(requests: list[Request]) -> None:
    it = scheduler()
    it.part_tokens = 8
    for each in requests:
        it.add(each)
    assert it.schedule().requests == requests
    assert it.schedule_rest() is None


def test_prompts_beside_requests_that_decode_are_planned_at_once() -> None:
    it = scheduler(mixes=True)
    it.part_tokens = 4
    it.add(request("a", max_tokens=20))
    run(it)
    for name in "bcd":
        it.add(request(name))
    assert len(it.schedule().requests) == 4
    assert it.schedule_rest() is None


@pytest.mark.parametrize("seed", range(8))
def test_two_parts_of_a_step_plan_what_one_step_plans(seed: int) -> None:
    """The same requests in the same order and steps, with shared prefixes, long prompts and requests that end."""
    told = []
    for part in (0, 5):
        dice, it, steps = random.Random(seed), scheduler(40, max_prefill_tokens=20, mixes=True, max_batch_size=6), []
        it.part_tokens = part
        for _ in range(60):
            name, tokens = dice.choice("abcdefghijkl"), dice.choice((1, 3, 4, 6, 9, 18, 28))
            it.add(request(name, prompt=tokens, max_tokens=dice.choice((1, 1, 1, 1, 3))))
        parts = 0
        while it.waiting or it.prefilling or it.running:
            first, rest = it.schedule(), it.schedule_rest()
            assert all(rest.num_tokens) if rest else True
            parts += rest is not None
            plans = [first, rest] if rest else [first]
            steps.append([(each.id, n) for one in plans for each, n in zip(one.requests, one.num_tokens, strict=True)])
            for plan in plans:
                land(it, plan)
            if (dice.random() < 0.2) and it.prefilling:
                it.remove(it.prefilling[-1:])
            it.remove([each for each in it.running if len(each.output) >= each.params.max_tokens])
            it.cache.check_integrity()
        assert (parts > 0) == bool(part)
        told.append((steps, it.prefix_hits))
    assert told[0] == told[1]


def test_the_batch_is_bounded() -> None:
    it = scheduler(max_batch_size=2)
    for name in "abc":
        it.add(request(name))
    assert run(it) == ("prefill", "ab")
    assert run(it) == ("decode", "ab")
    it.remove([it.running[0]])
    assert run(it) == ("prefill", "c")


def test_a_prefill_step_is_bounded_and_a_long_prompt_takes_several() -> None:
    it = scheduler(max_prefill_tokens=10)
    for name, tokens in [("a", 20), ("b", 6), ("c", 4), ("d", 1)]:
        it.add(request(name, prompt=tokens, max_tokens=9))
    steps = [
        ("prefill", "a"),
        ("prefill", "a"),
        ("decode", "a"),
        ("prefill", "bc"),
        ("decode", "abc"),
        ("prefill", "d"),
    ]
    assert [run(it) for _ in steps] == steps


def test_those_who_run_wait_for_one_share_of_a_prompt_at_most() -> None:
    it = scheduler(max_prefill_tokens=8)
    it.add(request("a", max_tokens=20))
    run(it)
    run(it)
    it.add(request("b", prompt=20, max_tokens=9))
    shares = [run(it) for _ in range(6)]
    assert shares == [("prefill", "b"), ("decode", "a")] * 2 + [("prefill", "b"), ("decode", "ab")]


def test_those_who_got_a_token_beside_a_share_need_no_turn() -> None:
    it = scheduler(max_prefill_tokens=8, mixes=True)
    it.add(request("a", max_tokens=20))
    run(it)
    run(it)
    it.add(request("b", prompt=20, max_tokens=9))
    shares = [run(it) for _ in range(4)]
    assert shares == [("prefill", "b")] * 3 + [("decode", "ab")]


def test_who_gets_a_place_while_others_are_taken_in_is_next() -> None:
    """As if it had been admitted after that step: only the next one, and none that gains from the step's prefixes."""
    told = []
    for ahead in (False, True):
        it, steps = scheduler(max_prefill_tokens=20, mixes=True), []
        for name, tokens in (("a", 18), ("b", 2), ("c", 17), ("d", 3), ("c", 19), ("e", 1)):
            it.add(request(name, prompt=tokens, max_tokens=9))
        while it.waiting or it.prefilling:
            steps.append((*run(it, ahead=ahead), it.prefix_hits, len(it.waiting)))
        told.append(steps)
    assert [step[:3] for step in told[0]] == [("prefill", "ab", 0), ("prefill", "cd", 0), ("prefill", "ce", 17)]
    assert [step[:3] for step in told[1]] == [step[:3] for step in told[0]]
    assert [step[3] for step in told[0]] == [4, 2, 0]
    assert [step[3] for step in told[1]] == [2, 2, 0], "the second c waits for the first"


def test_nobody_waits_for_the_prefix_of_a_request_without_pages() -> None:
    it = scheduler()
    without, other = request("a", prompt=20, return_fork_scores=True), request("a", prompt=20)
    it.add(without)
    it.add(other)
    assert it.schedule().requests == [without, other]


def test_a_share_goes_to_the_next_in_line_too() -> None:
    it = scheduler(max_prefill_tokens=10)
    it.add(request("a", prompt=8))
    it.add(request("b", prompt=2))
    plan = it.schedule()
    assert [(each.id, n) for each, n in zip(plan.requests, plan.num_tokens, strict=True)] == [("a", 8), ("b", 2)]


def test_a_prompt_that_is_reported_is_taken_in_whole() -> None:
    it = scheduler(max_prefill_tokens=4)
    it.add(request("a", prompt=20, return_fork_counts=True))
    assert it.schedule().num_tokens == [20]


def test_who_arrives_is_removed_and_preempted_like_others() -> None:
    it = scheduler(requests_of_memory=1.2, max_prefill_tokens=4)
    it.add(request("a", prompt=2, max_tokens=30))
    run(it)
    it.add(request("b", prompt=20, max_tokens=12))
    while not it.preemptions:
        run(it)
    assert it.running
    assert [each.id for each in it.waiting] == ["b"]
    second = request("b", prompt=3)
    it.add(second)
    it.remove([second])
    it.remove([it.running[0]])
    it.schedule()
    it.remove([it.prefilling[0]])
    assert it.cache.use().bytes == 0


def test_nobody_is_admitted_without_pages() -> None:
    it = scheduler(requests_of_memory=1.2)
    it.add(request("a", prompt=24))
    it.add(request("b", prompt=24))
    assert run(it) == ("prefill", "a")
    assert run(it) == ("decode", "a")
    it.remove([it.running[0]])
    assert run(it) == ("prefill", "b")


def test_the_last_to_come_is_preempted_and_comes_back_first() -> None:
    it = scheduler(requests_of_memory=1.2)
    for name in "abc":
        it.add(request(name, prompt=10, max_tokens=22))
    assert run(it) == ("prefill", "abc")
    seen = [run(it)[1] for _ in range(12)]
    assert seen[0] == "abc"
    assert seen[-1] == "a"
    assert "ab" in seen
    assert it.preemptions == 2
    assert [each.id for each in it.waiting] == ["b", "c"]
    assert all(each.state is None for each in it.waiting)
    it.remove([it.running[0]])
    assert run(it)[1].startswith("b")


def test_a_request_without_cache_needs_no_pages() -> None:
    it = scheduler(requests_of_memory=1)
    it.add(request("a", prompt=24))
    it.add(request("d", prompt=24, rule="dynamic"))
    assert run(it) == ("prefill", "ad")
    assert it.running[1].state is None


def test_a_recomputed_request_admitted_during_a_step_is_still_prefilled() -> None:
    it = scheduler(max_prefill_tokens=8, mixes=True)
    for name in "de":
        it.add(request(name, prompt=8, rule="dynamic"))
    assert run(it, ahead=True) == ("prefill", "d")
    assert [each.id for each in it.prefilling] == ["e"]
    assert run(it) == ("prefill", "e")
    assert run(it) == ("decode", "de")


def test_a_prompt_with_pages_does_not_wait_for_one_without() -> None:
    """They are computed apart; of each kind a step has the first."""
    it = scheduler(max_prefill_tokens=8, mixes=True)
    for name, rule in (("d", "dynamic"), ("a", "causal"), ("e", "dynamic"), ("b", "causal")):
        it.add(request(name, prompt=8, rule=rule))
    assert run(it) == ("prefill", "da")
    assert [each.id for each in it.prefilling] == ["e"]
    assert run(it) == ("prefill", "eb")
    assert run(it)[0] == "decode"


def test_who_holds_no_pages_is_not_preempted() -> None:
    it = scheduler(requests_of_memory=1.2)
    for name in "ab":
        it.add(request(name, prompt=10, max_tokens=22))
    it.add(request("d", prompt=10, max_tokens=22, rule="dynamic"))
    while not it.preemptions:
        run(it)
    assert it.preemptions == 1
    assert [each.id for each in it.waiting] == ["b"]
    assert [each.id for each in it.running] == ["a", "d"]


def test_removing_frees_pages_whether_running_or_waiting() -> None:
    it = scheduler()
    first, second = request("a"), request("b")
    it.add(first)
    run(it)
    it.add(second)
    it.remove([second])
    it.remove([first])
    assert it.cache.use().bytes == 0
    assert not it.schedule().requests


def test_a_full_queue_refuses() -> None:
    """At ratio 2, four tokens may have eight streams and two have four: forks count, and so does a prompt's length."""
    it = scheduler(max_waiting_streams=13)
    it.add(request("a"))
    with pytest.raises(QueueFull, match="16 streams"):
        it.add(request("b"))
    it.add(request("c", prompt=2))
    assert it.waiting.streams == 12


def test_whoever_would_wait_alone_is_never_refused() -> None:
    it = scheduler(max_waiting_streams=1)
    it.add(request("a"))
    run(it)
    it.add(request("b"))
    with pytest.raises(QueueFull):
        it.add(request("c", prompt=1))
    run(it)
    it.add(request("c"))
    assert it.waiting.admitted_streams == 16


def test_a_client_has_a_share_of_the_queue() -> None:
    """Four tokens of prompt and four of completion may come to 16 streams, of which one client may have 40 waiting."""
    it = scheduler(max_waiting_streams=80, max_client_share=0.5, max_batch_size=1)
    it.add(request("a", client="one"))
    it.add(request("b", client="one"))
    with pytest.raises(ClientQueueFull, match="may need 48 streams when complete, and max_client_share allows 40"):
        it.add(request("c", client="one"))
    it.add(request("d", client="two"))
    it.add(request("e"))
    it.add(request("f"))
    run(it)
    it.add(request("g", client="one"))  # a runs, and waits no more
    assert [each.id for each in it.waiting] == ["b", "d", "e", "f", "g"], "in the order in which they came"


def test_a_client_that_has_nothing_waiting_is_let_in() -> None:
    it = scheduler(max_client_share=1e-6)
    it.add(request("a", client="one"))
    with pytest.raises(ClientQueueFull):
        it.add(request("b", client="one"))
    it.add(request("c", client="two"))


def test_nothing_is_kept_of_a_client_whose_requests_have_left() -> None:
    it = scheduler(requests_of_memory=1.2, max_client_share=0.5)
    for name in "abc":
        it.add(request(name, prompt=10, max_tokens=22, client=name))
    while not it.preemptions:
        run(it)
    assert it.waiting.streams_of_client("c") > 0, "preempted, it waits again"
    it.remove([*it.running, *it.waiting])
    assert not it.waiting._by_client


def test_streams_that_wait_are_told_through_preemption_and_removal() -> None:
    it = scheduler(requests_of_memory=1.2)
    for name in "abc":
        it.add(request(name, prompt=10, max_tokens=22))
    while not it.preemptions:
        run(it)
    assert it.waiting.streams == 2 * it.waiting.first.num_tokens > 20
    it.remove([it.waiting.first])
    assert it.waiting.streams == 2 * sum(each.num_tokens for each in it.waiting)


def guessing(it: Scheduler, names: str, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Requests that decode, of which every next token will be guessed, as far as they may be."""
    monkeypatch.setattr(Lookup, "guess", lambda *args: [1] * min(it.config.speculate, args[-1]))
    requests = [request(name, max_tokens=25) for name in names]
    for each in requests:
        it.add(each)
    run(it)
    for each in requests:
        each.lookup = Lookup(it.config.speculate)
    return requests


def test_a_step_computes_no_more_guesses_than_prompt_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    it = scheduler(max_prefill_tokens=12, speculate=9)
    guessing(it, "abc", monkeypatch)
    assert it.schedule().num_tokens == [10, 4, 1]


def test_guesses_are_shared_evenly_or_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    it = scheduler(speculate=9)
    it.guessing = Guessing(least=4, most_tokens=12)
    guessing(it, "ab", monkeypatch)
    assert it.schedule().num_tokens == [6, 6]
    for each in it.running:
        each.drop_draft()
    guessing(it, "c", monkeypatch)
    assert it.schedule().num_tokens == [1, 1, 1]


def test_few_guesses_for_all_that_wait_for_them_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    it = scheduler(speculate=9)
    it.guessing = Guessing(least_together=4)
    for each in guessing(it, "abc", monkeypatch)[1:]:
        each.lookup = None
    assert it.schedule().num_tokens == [1, 1, 1], "nine guesses for three requests"
    assert not any(each.draft for each in it.running)
    it.remove(it.running[2:])
    for each in it.running:
        each.output.append(1)
    assert it.schedule().num_tokens == [10, 1]


def test_a_token_in_flight_is_waited_for_before_its_guesses_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    it = scheduler(speculate=9)
    flying, other = guessing(it, "ab", monkeypatch)
    other.lookup = None
    flying.num_scheduled += 1
    assert it.schedule().num_tokens == [0, 1]
    assert flying.in_flight
    flying.output.append(1)
    assert it.schedule().num_tokens == [10, 1]


def test_the_last_token_in_flight_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many guesses are left as do not pay once it is known."""
    it = scheduler(speculate=9)
    it.guessing = Guessing(least=4)
    [flying] = guessing(it, "a", monkeypatch)
    monkeypatch.setattr(Lookup, "guess", lambda *args: [1] * args[-1] if args[-1] >= it.guessing.least else [])
    for left, planned in ((6, 0), (5, 1)):
        flying.output = [1] * (25 - left)
        flying.num_scheduled = len(flying.output) + 1
        assert it.schedule().num_tokens == [planned]


def test_a_guess_evicts_no_prefix_but_for_the_pages_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    it = scheduler(5, speculate=16)
    for name in "xyz":
        it.add(request(name, prompt=28))
        run(it)
        it.remove(list(it.running))
    for each in guessing(it, "abcd", monkeypatch)[1:]:
        each.lookup = None
    assert it.schedule().num_tokens == [17, 1, 1, 1]
    assert len(it.cache._retained) == 3
