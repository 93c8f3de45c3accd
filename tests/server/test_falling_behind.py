"""Streams with several queued events: fewer chunks with the same content (API.md §3)."""

import asyncio
import itertools
import json
import math
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from starlette.types import Message

from tests.server.harness import GatedEngine, Json, MakeEngine, joined
from thoughtbubbles.engine import TokenEvent
from thoughtbubbles.server.bridge import pacing
from thoughtbubbles.server.bridge.errors import CancelledError
from thoughtbubbles.server.bridge.generation import Generation
from thoughtbubbles.server.bridge.worker import Worker
from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.http.streaming import CompletionStream
from thoughtbubbles.server.observe.metrics import Metrics
from thoughtbubbles.server.protocol.chat import ChatCompletion
from thoughtbubbles.server.protocol.completions import Completion
from thoughtbubbles.server.protocol.planning import plan
from thoughtbubbles.server.protocol.requests import CompletionRequest
from thoughtbubbles.server.settings import ServerSettings

ASKED: Json = {"prompt": ["🫧 one", "two"], "n": 2, "max_tokens": 20, "seed": 5, "stream": True}
EVERYTHING: Json = {"logprobs": 2, "return_token_ids": True, "return_fork_counts": True, "echo": True}


@pytest.fixture(scope="module")
def made(make_engine: MakeEngine) -> tuple[GatedEngine, ServedModel]:
    return make_engine(ServerSettings(max_batch_size=8, max_waiting_streams=1024))


def steps_of(engine: GatedEngine, completion: Completion) -> list[list[TokenEvent]]:
    for sequence in completion.plan.sequences:
        engine.add(sequence.request_id, sequence.prompt, sequence.params)
    steps = []
    while engine.has_work:
        steps.append(engine.step())
    return steps


def completion_of(served: ServedModel, kind: type[Completion] = Completion, **asked: object) -> Completion:
    request = CompletionRequest.model_validate({**ASKED, **asked})
    return kind("name", plan("name", request, served), served)


def stream(completion: Completion, events: Sequence[TokenEvent], *, fails: bool = False) -> list[Json]:
    """What is sent when all events are there before the first is read."""

    async def read() -> bytes:
        generation = Generation("name", completion.plan.sequences, lambda _: None)
        for event in events:
            generation.put(event)
        generation.wake()
        if fails:
            generation.fail(CancelledError())
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return await asyncio.Future()

        response = CompletionStream(completion, generation, metrics=Metrics(), headers={}, keep_alive_seconds=60)
        await response({"type": "http", "method": "POST"}, receive, send)
        return b"".join(message.get("body", b"") for message in sent)

    *told, done, rest = asyncio.run(read()).decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(each.removeprefix("data: ")) for each in told]


def whole(
    served: ServedModel, events: Sequence[TokenEvent], kind: type[Completion] = Completion, **asked: object
) -> Json:
    completion = completion_of(served, kind, **asked)
    completion.add(events)
    return completion.whole()


@pytest.mark.parametrize(
    "options",
    [
        {},
        EVERYTHING,
        {"stop": ["ab", "bca", "cc"], "logit_bias": {str(byte): 20 for byte in b"abc"}, **EVERYTHING},
        {"stop": "🫧", "logit_bias": {str(byte): 8 for byte in "🫧é".encode()}, "logprobs": 0},
        {"max_tokens": 0, **EVERYTHING},
    ],
)
def test_all_at_once_is_one_chunk_a_choice_and_the_same_answer(
    made: tuple[GatedEngine, ServedModel], options: Json
) -> None:
    engine, served = made
    events = [event for step in steps_of(engine, completion_of(served, **options)) for event in step]
    told = stream(completion_of(served, stream_options={"include_usage": True}, **options), events)
    answer = whole(served, events, **options)
    *parts, last = told
    assert [part["choices"][0]["index"] for part in parts] == [0, 1, 2, 3]
    assert [joined(parts, index) for index in range(4)] == answer["choices"]
    assert last["usage"] == answer["usage"]


@pytest.mark.parametrize("behind", [1, 2, 3, 7])
def test_however_far_behind_the_joined_stream_is_the_same_answer(
    made: tuple[GatedEngine, ServedModel], behind: int
) -> None:
    """Without being behind a choice has a chunk a step; with it, one for as many steps as wait."""
    engine, served = made
    options = {**EVERYTHING, "logit_bias": {"65": 100}}
    steps = steps_of(engine, completion_of(served, **options))
    completion = completion_of(served, **options, stream_options={"continuous_usage_stats": True})
    turns = [[e for step in steps[at : at + behind] for e in step] for at in range(0, len(steps), behind)]
    parts = [chunk for turn in turns for chunk in completion.chunks(turn)]
    answer = whole(served, [event for step in steps for event in step], **options)
    assert [joined(parts, index) for index in range(4)] == answer["choices"]
    counts = [part["usage"]["completion_tokens"] for part in parts]
    told = [
        sum(len(choice["token_ids"]) for part in parts[: i + 1] for choice in part["choices"])
        for i in range(len(parts))
    ]
    assert counts == told
    assert parts[-1]["usage"] == answer["usage"]
    assert len(parts) == sum(len({event.request_id for event in turn}) for turn in turns)


def test_a_chat_that_falls_behind_says_its_role_once_and_all_it_has(made: tuple[GatedEngine, ServedModel]) -> None:
    engine, served = made
    options = {"logprobs": 1}
    steps = steps_of(engine, completion_of(served, ChatCompletion, **options))
    completion = completion_of(served, ChatCompletion, **options)
    head, tail = steps[0], [event for step in steps[1:] for event in step]
    parts = [*completion.chunks(head), *completion.chunks(tail)]
    answer = whole(served, [*head, *tail], ChatCompletion, **options)
    for index, choice in enumerate(answer["choices"]):
        first, *rest = [part["choices"][0] for part in parts if part["choices"][0]["index"] == index]
        assert first["delta"]["role"] == "assistant"
        assert not any("role" in each["delta"] for each in rest)
        text = "".join(each["delta"].get("content", "") for each in (first, *rest))
        assert text == choice["message"]["content"]
        tokens = [token for each in (first, *rest) for token in each["logprobs"]["content"]]
        assert tokens == choice["logprobs"]["content"]
        assert [first, *rest][-1]["finish_reason"] == choice["finish_reason"]


def test_an_error_comes_after_what_came_before_it(made: tuple[GatedEngine, ServedModel]) -> None:
    engine, served = made
    events = [event for step in steps_of(engine, completion_of(served, logit_bias={"65": 100}))[:3] for event in step]
    *parts, error = stream(completion_of(served), events, fails=True)
    assert len(parts) == 4
    assert error["error"]["code"] == "cancelled"


class Idle:
    """A stand-in for the engine's thread."""

    def add(self, _: Generation) -> None:
        """Nobody computes anything."""


@pytest.fixture
def worker(made: tuple[GatedEngine, ServedModel], monkeypatch: pytest.MonkeyPatch) -> Worker:
    worker = Worker(lambda: made, Metrics().meter, math.inf, math.inf)
    monkeypatch.setattr(worker, "_thread", Idle())
    monkeypatch.setattr(worker, "_model", made[1])
    return worker


class Heard:
    """A stream of one choice, whose steps a test has the worker hear of."""

    def __init__(self, made: tuple[GatedEngine, ServedModel], worker: Worker, name: str = "name") -> None:
        engine, served = made
        request = CompletionRequest.model_validate(
            {**ASKED, "prompt": "one", "n": 1, "max_tokens": 8, "ignore_eos": True}
        )
        completion = Completion(name, plan(name, request, served), served)
        self.steps = steps_of(engine, completion)
        self.reads: list[int] = []
        self.twice = asyncio.Event()
        """Set once there were two reads."""
        self._worker = worker
        self._generation = worker.submit(name, completion.plan.sequences, 0.0)
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for events in self._generation:
            self.reads.append(len(events))
            if len(self.reads) == 2:
                self.twice.set()

    async def hear(self, step: int) -> list[int]:
        """How many events each read had, once this step is heard of."""
        self._worker.on_events(self.steps[step - 1])
        for _ in range(5):
            await asyncio.sleep(0)
        return self.reads


def test_what_is_quick_to_write_is_written_step_by_step(
    made: tuple[GatedEngine, ServedModel], worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thoughtbubbles.server.bridge.pacing.SHORT_SECONDS", math.inf)

    async def run() -> None:
        stream = Heard(made, worker)
        for step in range(1, 9):
            assert await stream.hear(step) == [1] * step
        await stream.reading

    asyncio.run(run())


def test_after_a_long_turn_streams_pause_but_not_for_their_first_event_or_last(
    made: tuple[GatedEngine, ServedModel], worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thoughtbubbles.server.bridge.pacing.SHORT_SECONDS", -1)  # every turn is long
    monkeypatch.setattr("thoughtbubbles.server.bridge.pacing.PAUSE", 1e12)
    monkeypatch.setattr("thoughtbubbles.server.bridge.pacing.LONGEST_PAUSE_SECONDS", 3600)

    async def run() -> None:
        first, second = Heard(made, worker), Heard(made, worker, "other")
        assert await first.hear(1) == [1]
        for step in range(2, 8):
            assert await first.hear(step) == [1]
        assert await second.hear(1) == [1]
        assert await first.hear(8) == [1, 7]
        await first.reading
        second.reading.cancel()

    asyncio.run(run())


def test_a_pause_ends_by_itself(
    made: tuple[GatedEngine, ServedModel], worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thoughtbubbles.server.bridge.pacing.SHORT_SECONDS", -1)
    monkeypatch.setattr("thoughtbubbles.server.bridge.pacing.PAUSE", 1e12)
    monkeypatch.setattr("thoughtbubbles.server.bridge.pacing.LONGEST_PAUSE_SECONDS", 0.05)

    async def run() -> None:
        stream = Heard(made, worker)
        await stream.hear(1)
        await stream.hear(2)
        await stream.twice.wait()
        assert stream.reads == [1, 1]
        stream.reading.cancel()

    asyncio.run(run())


class Written:
    """A generation of which only is counted how often it was to be written."""

    def __init__(self) -> None:
        self.times = 0

    def wake(self) -> None:
        self.times += 1


@pytest.mark.parametrize(("processes", "written"), [(1, 3), (2, 3), (3, 1)])
def test_what_is_quick_to_write_is_long_where_more_processes_write(
    monkeypatch: pytest.MonkeyPatch, processes: int, written: int
) -> None:
    """0.4 ms of one process are 0.8 of two and 1.2 of three, after which they pause."""
    clock = itertools.count()
    monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic=lambda: 0.0004 * next(clock)))
    monkeypatch.setattr(pacing, "LONGEST_PAUSE_SECONDS", 3600)
    monkeypatch.setattr(pacing, "PAUSE", 1e12)

    async def run() -> int:
        writing, stream = pacing.Pacing(processes), Written()
        for _ in range(3):
            writing.write([stream])
            await asyncio.sleep(0)
        return stream.times

    with asyncio.Runner() as runner:
        assert runner.run(run()) == written
