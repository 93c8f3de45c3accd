"""Long answers are written one at a time, and no other request waits for them."""

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.harness import Running, eventually
from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.http.offload import LONG_ANSWERS
from thoughtbubbles.server.protocol.completions import Completion
from thoughtbubbles.server.protocol.planning import Plan

LONG = {"prompt": "long", "max_tokens": 1, "echo": True, "logprobs": 2}


@pytest.fixture
def busy() -> Iterator[threading.Event]:
    """The lane writes an answer until this is set."""
    done = threading.Event()
    LONG_ANSWERS.submit(done.wait, 30)
    yield done
    done.set()


@pytest.mark.parametrize("stream", [False, True])
def test_long_answers_wait_their_turn(server: Running, busy: threading.Event, stream: bool) -> None:
    with ThreadPoolExecutor(1) as clients:
        asked = clients.submit(server.client.post, "/v1/completions", json=LONG | {"stream": stream})
        assert server.complete(prompt="short", max_tokens=3)["usage"]["completion_tokens"] == 3
        assert server.complete(prompt="short", max_tokens=0, echo=True)["choices"][0]["text"] == "short"
        assert not asked.done()
        busy.set()
        assert "token_logprobs" in asked.result(30).text


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_is_forgotten_once_it_is_told(
    streamed: bool, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it waits for the garbage collector, which comes late: a scored prompt is large."""
    made: list[weakref.ref[Completion]] = []
    begin = Completion.__init__

    def recorded(self: Completion, name: str, plan: Plan, served: ServedModel) -> None:
        begin(self, name, plan, served)
        made.append(weakref.ref(self))

    monkeypatch.setattr(Completion, "__init__", recorded)
    gc.disable()
    try:
        server.client.post("/v1/completions", json={"prompt": "x", "logprobs": 1, "echo": True, "stream": streamed})
        assert made
        eventually(lambda: made[0]() is None, seconds=5)
    finally:
        gc.enable()
