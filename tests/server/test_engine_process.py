"""An engine in a process of its own: what clients and operators see is what they see of one on a thread."""

import json
import os
import pickle
import queue
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children
from multiprocessing.context import SpawnProcess
from pathlib import Path

import httpx
import pytest

from tests.server.harness import (
    CONTEXT,
    Json,
    Listening,
    MakeEngine,
    RunBeside,
    chunks,
    events,
    eventually,
    joined,
    listening,
)
from tests.server.ordered import load_ordered, order
from tests.server.test_limits import read
from tests.server.test_operation import assert_law, samples
from thoughtbubbles.engine import SamplingParams
from thoughtbubbles.server.__main__ import main
from thoughtbubbles.server.bridge.commands import Abort, Add, Command
from thoughtbubbles.server.bridge.loop import (
    Aborted,
    Accepted,
    CommandsDone,
    Loaded,
    Refused,
    Report,
    Stepped,
    run_engine,
)
from thoughtbubbles.server.bridge.process import run_engine_process
from thoughtbubbles.server.core import EngineRequest
from thoughtbubbles.server.service import Service
from thoughtbubbles.server.settings import ServerSettings

ROOT = Path(__file__).parents[2]
FORCED = {"max_tokens": 20, "logit_bias": {"97": 100}}
ABORTED = ("request_finished_total", "abort")
GENERATED = ("generation_tokens_total",)
LIMITS = {"threads": 1, "max_batch_size": 8, "max_waiting_streams": 256, "max_client_share": 1}


@pytest.fixture(scope="module")
def shared(checkpoint: Path, orders: Path) -> Iterator[Listening]:
    settings = ServerSettings(checkpoint=checkpoint, **LIMITS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thoughtbubbles.server.service.run_engine", run_engine_process)
        service = Service.create(settings, partial(load_ordered, orders, settings))
    with listening(service) as found:
        yield found


@pytest.fixture
def apart(shared: Listening) -> Iterator[Listening]:
    """A server whose engine has a process of its own; each test leaves it free and its cache empty."""
    yield shared
    found = samples(shared)
    assert_law(found)
    assert found["num_requests_running",] == found["num_requests_waiting",] == found["cache_streams",] == 0


@pytest.fixture(scope="module")
def thread(checkpoint: Path) -> Iterator[Listening]:
    """The same on a thread."""
    with listening(Service.create(ServerSettings(checkpoint=checkpoint, **LIMITS))) as found:
        yield found


def test_tokens_are_those_of_an_engine_on_a_thread(apart: Listening, thread: Listening) -> None:
    body = {"prompt": ["The river", "x"], "n": 2, "max_tokens": 16, "seed": 7, "logprobs": 2, "echo": True}
    here, there = thread.complete(**body)["choices"], apart.complete(**body)["choices"]
    assert there == here
    assert len({choice["text"] for choice in there}) == 4
    streamed = chunks(apart, **body)
    assert [joined(streamed, index) for index in range(4)] == here


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"prompt": [300]}, "invalid_token_id"),
        ({"prompt": "x", "max_tokens": CONTEXT}, "context_length_exceeded"),
        ({"stop_token_ids": [300]}, "invalid_token_id"),
    ],
)
def test_refusals(apart: Listening, thread: Listening, body: Json, code: str) -> None:
    """Refusals have the API's form, from the server and from the engine."""
    there, here = (server.client.post("/v1/completions", json=body) for server in (apart, thread))
    assert (there.status_code, there.json()) == (here.status_code, here.json())
    assert there.json()["error"]["code"] == code


@contextmanager
def asking(server: Listening, **body: object) -> Iterator[socket.socket]:
    """A client whose request the engine has taken; leaving the block, it goes."""
    accepted = ("request_accepted_total",)
    before = samples(server)[accepted]
    content = json.dumps(body)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        client.sendall((head + content).encode())
        eventually(lambda: samples(server)[accepted] > before)
        yield client


@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "disconnected"])
@pytest.mark.parametrize("tokens", [0, 3], ids=["waiting", "running"])
def test_who_is_given_up_holds_nothing(apart: Listening, orders: Path, tokens: int, cancelled: bool) -> None:
    before = samples(apart)
    order(orders, int(before[GENERATED]) + tokens)
    with asking(apart, **FORCED) as client:
        eventually(lambda: samples(apart)[GENERATED] == before[GENERATED] + tokens)
        if cancelled:
            (name,) = {generation.completion_id for generation in apart.service.worker._by_request.values()}
            assert apart.client.post(f"/v1/completions/{name}/cancel").status_code == 200
            assert b'"code":"cancelled"' in read(client)  # to the end: head and body may come one after the other
    eventually(lambda: samples(apart)[ABORTED] == before[ABORTED] + 1)
    order(orders, "")


def test_a_full_queue(apart: Listening, orders: Path) -> None:
    before = samples(apart)
    order(orders, int(before[GENERATED]))
    with asking(apart, prompt=["x" * 40] * 2):
        answer = apart.client.post("/v1/completions", json={"prompt": ["x" * 40] * 2})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        assert answer.headers["retry-after"].isdigit()
        assert_law(samples(apart))
    eventually(lambda: samples(apart)[ABORTED] == before[ABORTED] + 2)
    order(orders, "")


Client = Callable[[Listening, SpawnProcess], object]


@pytest.fixture
def beside(run_ordered: RunBeside, port: int, monkeypatch: pytest.MonkeyPatch) -> RunBeside:
    """Run the command beside a client, which gets the engine's process."""
    others = active_children()

    def both(client: Client) -> tuple[int, object]:
        def when_loaded(service: Service) -> object:
            eventually(service.worker.loaded.is_set)
            (engine,) = set(active_children()).difference(others)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
                return client(Listening(str(http.base_url), service, http), engine)

        return run_ordered(when_loaded)

    monkeypatch.setattr("thoughtbubbles.server.service.run_engine", run_engine_process)
    return both


def go_on(server: Listening) -> None:
    """Make a blocked engine read its orders, by a command that does nothing."""
    server.service.worker._thread.abort([], "abort")


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("kill", r"RuntimeError: the engine's process ended with -9"),
        ("burst", r"RuntimeError: BurstError: a tensor burst\nTraceback (.|\n)*in step\n(.|\n)*BurstError\("),
    ],
)
def test_an_engine_that_ends(
    beside: RunBeside, orders: Path, caplog: pytest.LogCaptureFixture, end: str, reason: str
) -> None:
    """Killed or failed: every client gets an error, /ready says so, the exit code is 1, and the log has the reason."""

    def client(server: Listening, engine: SpawnProcess) -> tuple[list[str], int, Json]:
        order(orders, 3)
        with ThreadPoolExecutor() as pool, events(server, **FORCED) as told:
            next(told)
            whole = pool.submit(httpx.post, f"{server.url}/v1/completions", json=FORCED, timeout=30)
            eventually(lambda: samples(server)["request_accepted_total",] == 2)
            if end == "kill":
                engine.kill()
            else:
                order(orders, end)
                go_on(server)
            lines = list(told)
            return lines, whole.result(30).status_code, server.client.get("/ready").json()

    code, (lines, status, ready) = beside(client)
    assert code == 1
    assert '"code":"engine_failed"' in lines[-2]
    assert lines[-1] == "[DONE]"
    assert (status, ready["error"]["code"]) == (500, "failed")
    assert re.search(reason, caplog.text)


def test_sigterm_to_both_lets_streams_finish(beside: RunBeside, orders: Path) -> None:
    """As systemd sends it to all processes of a service, and a terminal its SIGINT."""

    def client(server: Listening, engine: SpawnProcess) -> list[str]:
        order(orders, 3)
        with events(server, **FORCED) as told:
            next(told)
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(engine.pid, number)
            os.kill(os.getpid(), signal.SIGTERM)
            eventually(lambda: server.client.get("/ready").status_code == 503)
            order(orders, "")
            go_on(server)
            return list(told)

    code, lines = beside(client)
    assert code == 0
    assert '"finish_reason":"length"' in lines[-2]
    assert lines[-1] == "[DONE]"


def test_a_torn_checkpoint_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong with it comes from the other process as it is."""
    monkeypatch.setattr("thoughtbubbles.server.service.run_engine", run_engine_process)
    monkeypatch.setattr(sys, "argv", ["serve", "--checkpoint", str(tmp_path), "--port", "0"])
    assert main() == 2
    there = capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["serve", "--checkpoint", str(tmp_path), "--port", "0"])
    assert main() == 2
    assert there == capsys.readouterr().err
    assert there.count("\n") == 1


def start(orders: Path, checkpoint: Path, *given: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.server.ordered", str(orders), "--checkpoint", str(checkpoint),
               "--port", "0", "--threads", "1", *given]  # fmt: skip
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def test_a_step_that_never_returns(checkpoint: Path, orders: Path) -> None:
    """Neither the watchdog nor SIGKILL of the server leaves a process: one that lived would hold the pipes open."""
    watched = start(orders, checkpoint, "--watchdog-seconds", "0.5")
    killed = start(orders, checkpoint)
    with watched, killed, ThreadPoolExecutor() as pool:
        streams = []
        for process in (watched, killed):
            head = "".join(iter(process.stdout.readline, "\n"))
            url = re.search(r"http://[\d.:]+", head)[0]
            order(orders, "hang")
            streams.append(
                pool.submit(httpx.post, f"{url}/v1/completions", json={"stream": True, **FORCED}, timeout=30)
            )
            while process is killed and httpx.get(f"{url}/metrics").text.count("requests_waiting 0.0"):
                pass
        killed.kill()
        assert '"code":"engine_failed"' in streams[0].result(30).text
        assert isinstance(streams[1].exception(30), httpx.HTTPError)
        errors = [process.communicate(timeout=30)[1] for process in (watched, killed)]
    order(orders, "")
    assert (watched.returncode, killed.returncode) == (1, -signal.SIGKILL)
    assert "a step has not returned" in errors[0]
    assert "Traceback" not in errors[1]


INTERRUPTING = """
import multiprocessing, os, signal, threading

if multiprocessing.current_process().name == "engine":
    os.killpg(0, signal.SIGINT)

def load(settings):
    threading.Event().wait()
"""
SERVE = """
import sys
import interrupting
from thoughtbubbles.server import service
from thoughtbubbles.server.bridge import worker
from thoughtbubbles.server.__main__ import main
from thoughtbubbles.server.bridge.process import run_engine_process
service.run_engine = run_engine_process
service.load_model = interrupting.load
worker.STOP_SECONDS = 0.5
sys.exit(main())
"""


def test_a_terminals_interrupt_before_the_engine_is_loaded(tmp_path: Path, checkpoint: Path) -> None:
    """All processes get it, one of them while it imports what it is to load: a stop, and no process is left."""
    (tmp_path / "interrupting.py").write_text(INTERRUPTING)
    told = subprocess.run(
        [sys.executable, "-c", SERVE, "--checkpoint", str(checkpoint), "--port", "0"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}, start_new_session=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_all_that_is_told_can_be_sent(make_engine: MakeEngine) -> None:
    """Commands and events of an engine on a thread survive pickling."""
    settings = ServerSettings(max_batch_size=1, max_waiting_streams=64)
    params = SamplingParams(max_tokens=3, logit_bias={97: 5.0}, logprobs=2, prompt_logprobs=1, stop=("x",), seed=1)

    def admit(*prompts: str) -> Add:
        requests = [
            EngineRequest(request_id=f"{prompt}{i}", prompt=list(prompt.encode()), params=params)
            for i, prompt in enumerate(prompts)
        ]
        return Add(requests, 1.5)

    given: list[Command] = [
        admit("abc", "de"),
        admit(*["f" * 30] * 9),
        admit("g" * 70),
        Abort(["de1"], "abort"),
    ]
    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
    told: list[Report] = []

    def tell(news: Report) -> None:
        told.append(news)
        if isinstance(news, Stepped) and any(event.finish_reason for event in news.events):
            commands.put(None)

    for command in given:
        commands.put(command)
    run_engine(lambda: make_engine(settings), commands, tell)
    assert {type(news) for news in told} == {Loaded, Accepted, Refused, Aborted, CommandsDone, Stepped}
    refusals = [news.refusal for news in told if isinstance(news, Refused)]
    assert [type(refusal).__name__ for refusal in refusals] == ["QueueFull", "InvalidRequest"]
    for each in [*given, *told]:
        again = pickle.loads(pickle.dumps(each))
        if isinstance(each, Refused):
            assert vars(again.refusal) == vars(each.refusal)
            assert (type(again.refusal), again.refusal.args) == (type(each.refusal), each.refusal.args)
            assert again.stats == each.stats
        elif isinstance(each, Loaded):
            assert again.model.labels() == each.model.labels()
            messages = [{"role": "user", "content": "x"}]
            encoded = [model.chat_template.encode(messages, model.tokenizer) for model in (again.model, each.model)]
            assert encoded[0] == encoded[1]
        else:
            assert again == each
