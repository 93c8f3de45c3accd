"""Several HTTP processes before one engine: clients see one server, and its operator too."""

import http.client
import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.server.connecting import Connection, Processes, children
from tests.server.harness import RunBeside, eventually, random_model
from tests.server.ordered import order
from tests.server.test_engine_process import start
from tests.server.test_operation import assert_law
from thoughtbubbles.model import Tokenizer, save_checkpoint
from thoughtbubbles.server.processes import first
from thoughtbubbles.server.service import Service

pytestmark = pytest.mark.skipif("sys.platform != 'linux'", reason="the setting is for Linux")

FORCED = {"max_tokens": 20, "logit_bias": {"97": 100}}
LIMITS = ("--http-processes", "2", "--max-batch-size", "8", "--max-waiting-streams", "256", "--max-client-share", "1")


@pytest.fixture(scope="module")
def server(checkpoint: Path, orders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Of two HTTP processes, with keys of both kinds."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("sk-user")
    process = start(orders, checkpoint, *LIMITS, "--api-keys-file", str(keys), "--admin-keys-file", str(keys))
    with process:
        yield Processes(listening_port(process), process.pid, "sk-user")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()


def listening_port(process: subprocess.Popen[str]) -> int:
    """The port that a server announces."""
    head = "".join(iter(process.stdout.readline, "\n"))
    return int(re.search(r"http://[\d.]+:(\d+)", head)[1])


@pytest.fixture
def pair(server: Processes, orders: Path) -> Iterator[tuple[Connection, Connection]]:
    """A connection to each process; each test leaves the engine idle and its numbers right."""
    with server.connected(server.first) as one, server.connected(server.other) as two:
        yield one, two
    order(orders, "")
    with server.connected(server.first) as one:
        eventually(lambda: one.samples()["num_requests_running",] == one.samples()["num_requests_waiting",] == 0)
        assert_law(one.samples())


def test_connections_are_shared_out(server: Processes) -> None:
    """By the kernel: that one of the two gets all of 40 happens once in 2^39."""
    connections = [Connection("127.0.0.1", server.port) for _ in range(40)]
    found = Counter(map(server.serving, connections))
    for connection in connections:
        connection.close()
    assert set(found) == {server.first, server.other}


def test_streams_of_both_processes_at_once(pair: tuple[Connection, Connection]) -> None:
    """Each has its own tokens, the same of the same seed."""
    body = {"prompt": "The river", "max_tokens": 30, "seed": 3, "ignore_eos": True}
    with ThreadPoolExecutor() as pool:
        streams = list(pool.map(lambda connection: list(connection.stream(**body)), pair))
    assert all(lines[-1] == "[DONE]" for lines in streams)
    texts = ["".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]) for lines in streams]
    assert texts[0] == texts[1] == pair[0].complete(**body)["choices"][0]["text"]


def test_metrics_are_those_of_the_whole_server(pair: tuple[Connection, Connection]) -> None:
    rejected, accepted = ("request_rejected_total", "integer_below_min_value"), ("request_accepted_total",)
    before = pair[0].samples()
    for connection in pair:
        connection.complete(max_tokens=2)
        assert connection.error("POST", "/v1/completions", {"n": 0}) == (400, "integer_below_min_value")
    for connection in pair:
        found = connection.samples()
        assert_law(found)
        assert found[accepted] - before[accepted] == 2
        assert found[rejected] - before.get(rejected, 0) == 2
        assert found["http_connections",] >= 2
        assert found.keys() == pair[0].samples().keys()


def test_no_counter_falls_from_scrape_to_scrape(pair: tuple[Connection, Connection]) -> None:
    """Whichever process counts, and whichever is asked, right after each other."""
    code = ("request_rejected_total", "model_not_found")
    expected = pair[0].samples().get(code, 0)
    for counting in (pair[0], pair[1], pair[1], pair[0]):
        assert counting.error("POST", "/v1/completions", {"model": "other"}) == (404, "model_not_found")
        expected += 1
        assert [asked.samples()[code] for asked in (*pair, *pair)] == [expected] * 4


def test_every_help_text_is_there_once(pair: tuple[Connection, Connection]) -> None:
    texts = [connection.ask("GET", "/metrics")[1] for connection in pair]
    helps = [re.findall(r"^# HELP .*$", text, re.MULTILINE) for text in texts]
    assert helps[0] == helps[1]
    assert max(Counter(helps[0]).values()) == 1


@pytest.mark.parametrize("runs_in", [0, 1], ids=["of the first", "of the other"])
def test_cancel_by_the_other_process(pair: tuple[Connection, Connection], orders: Path, runs_in: int) -> None:
    here, there = pair[runs_in], pair[1 - runs_in]
    generated = int(here.samples()["generation_tokens_total",])
    order(orders, generated + 2)
    lines = here.stream(**FORCED)
    name = json.loads(next(lines))["id"]
    status, _ = there.ask("POST", f"/v1/completions/{name}/cancel")
    assert status == 200
    *_, error, done = lines
    assert ('"code":"cancelled"' in error, done) == (True, "[DONE]")
    assert there.error("POST", f"/v1/completions/{name}/cancel") == (404, "not_found")


def test_a_full_queue_is_full_for_both(pair: tuple[Connection, Connection], orders: Path) -> None:
    """The other has a Retry-After, which it does not count for itself."""
    here, there = pair
    order(orders, int(here.samples()["generation_tokens_total",]))
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(here.complete, prompt=["x" * 40] * 2, max_tokens=2)
        try:
            eventually(lambda: there.samples()["num_requests_waiting",] == 2)
            there.request("POST", "/v1/completions", json.dumps({"prompt": ["x" * 40] * 2}),
                          {"authorization": "Bearer sk-user"})  # fmt: skip
            refused = there.getresponse()
            assert (refused.status, json.loads(refused.read())["error"]["code"]) == (429, "queue_full")
            assert refused.headers["retry-after"].isdigit()
        finally:
            order(orders, "")
            here_too = pair[1].complete(max_tokens=1)  # wakes the engine
        assert len(waiting.result(30)["choices"]) == 2
        assert here_too["choices"]


def test_keys_count_everywhere(pair: tuple[Connection, Connection]) -> None:
    for connection in pair:
        assert connection.error("GET", "/v1/models", key="sk-wrong") == (401, "invalid_api_key")
        assert connection.error("POST", "/admin/load", {"checkpoint": "x"}, key="sk-wrong") == (
            401,
            "invalid_admin_key",
        )
        assert connection.get("/v1/models")["data"][0]["id"] == "tiny"


@pytest.fixture(scope="module")
def moved(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same shape with other weights."""
    model = random_model(264)
    model.requires_grad_(requires_grad=False)
    for parameter in model.parameters():
        parameter.mul_(1.25)
    folder = tmp_path_factory.mktemp("checkpoints") / "moved"
    save_checkpoint(folder, model, tokenizer, {})
    return folder


@pytest.mark.parametrize("asked", [0, 1], ids=["the first", "the other"])
def test_weights_are_loaded_for_all(
    pair: tuple[Connection, Connection], checkpoint: Path, moved: Path, asked: int
) -> None:
    before = [connection.get("/version")["weights_version"] for connection in pair]
    assert before[0] == before[1]
    for folder in (moved, checkpoint):
        status, text = pair[asked].ask("POST", "/admin/load", {"checkpoint": str(folder)})
        assert status == 200, text
        version = json.loads(text)["weights_version"]
        for connection in pair:
            eventually(lambda: connection.get("/version")["weights_version"] == version)  # noqa: B023
            assert connection.complete(max_tokens=1)["system_fingerprint"].endswith(version)
    assert version == before[0]


def test_one_load_at_a_time(
    pair: tuple[Connection, Connection], server: Processes, orders: Path, checkpoint: Path, moved: Path
) -> None:
    """In all processes: of two loads that wait for a request, the later one is refused."""
    here, there = pair
    assert there.error("POST", "/admin/load", {"checkpoint": "/nowhere"}) == (400, "checkpoint_refused")
    order(orders, int(there.samples()["generation_tokens_total",]) + 2)
    lines = here.stream(**FORCED)
    next(lines)
    with server.connected(server.first) as third, ThreadPoolExecutor() as pool:
        body = {"checkpoint": str(moved)}
        loads = [pool.submit(each.ask, "POST", "/admin/load", body) for each in (there, third)]
        eventually(lambda: any(load.done() for load in loads))
        order(orders, "")
        with server.connected(server.first) as fourth:
            fourth.complete(max_tokens=1)  # wakes the engine
        assert list(lines)[-1] == "[DONE]"
        assert sorted(load.result(30)[0] for load in loads) == [200, 409]
        assert there.ask("POST", "/admin/load", {"checkpoint": str(checkpoint)})[0] == 200


Client = Callable[[Processes, Callable[[], None]], object]


@pytest.fixture
def beside(run_ordered: RunBeside, port: int) -> RunBeside:
    """Run the command beside a client of its processes, which can wake a held engine."""

    def both(client: Client, *given: str) -> tuple[int, object]:
        def when_ready(service: Service) -> object:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
                eventually(service.worker.loaded.is_set)
                eventually(lambda: http.get("/ready").status_code == 200)
            return client(Processes(port, os.getpid()), lambda: service.worker._thread.abort([], "abort"))

        return run_ordered(when_ready, *LIMITS, *given)

    return both


@contextmanager
def streaming(
    server: Processes, orders: Path, go_on: Callable[[], None]
) -> Iterator[tuple[Connection, Connection, list[Iterator[str]]]]:
    """A stream of each process, held after its first tokens, and a connection more to each."""
    order(orders, 0)
    with (
        server.connected(server.first) as one,
        server.connected(server.other) as two,
        server.connected(server.first) as more_of_one,
        server.connected(server.other) as more_of_two,
    ):
        streams = [one.stream(**FORCED), two.stream(**FORCED)]
        eventually(lambda: more_of_one.samples()["num_requests_waiting",] == 2)
        order(orders, 4)
        go_on()
        for lines in streams:
            next(lines)
        yield more_of_one, more_of_two, streams


def is_cut_off(lines: Iterator[str]) -> bool:
    """Whether a stream breaks off before its end."""
    try:
        return "[DONE]" not in list(lines)
    except (http.client.HTTPException, OSError):
        return True


def test_sigterm_drains_all_processes(beside: RunBeside, orders: Path) -> None:
    """Requests are refused by both, streams of both finish, and a second signal cuts off one that does not."""

    def client(server: Processes, go_on: Callable[[], None]) -> list[list[str]]:
        with streaming(server, orders, go_on) as (one, two, streams):
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(server.other, number)  # as a terminal or a supervisor does: it is for the first
            with server.connected(server.other) as long:
                streams.append(long.stream(max_tokens=40, ignore_eos=True))
                eventually(lambda: one.samples()["num_requests_waiting",] == 1)
                os.kill(os.getpid(), signal.SIGTERM)
                for connection in (one, two):
                    eventually(lambda: connection.ask("GET", "/ready")[0] == 503)  # noqa: B023
                    assert connection.error("GET", "/ready") == (503, "draining")
                    assert connection.error("POST", "/v1/completions", {}) == (503, "draining")
                assert_law(two.samples())
                order(orders, 2 * FORCED["max_tokens"] + 30)  # those of the third are made in the same steps
                go_on()
                finished = [list(lines) for lines in streams[:2]]
                os.kill(os.getpid(), signal.SIGTERM)
                return [*finished, list(streams[2])]

    code, told = beside(client, "--drain-seconds", "600")
    assert code == 0
    assert [lines[-1] for lines in told] == ["[DONE]"] * 3
    assert ['"finish_reason":"length"' in lines[-2] for lines in told] == [True, True, False]
    assert '"code":"draining"' in told[2][-2]


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGSTOP], ids=["killed", "stopped"]
)
def test_another_process_that_ends(
    beside: RunBeside, orders: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals,
) -> None:  # fmt: skip
    """Its clients lose their connections; the first's streams finish, the exit code is 1, and the log has the reason.

    One that has stopped would keep the engine waiting, once its pipe is full.
    """
    for name in ("COUNT_SECONDS", "HUNG_SECONDS"):
        monkeypatch.setattr(first, name, 0.1)

    def client(server: Processes, go_on: Callable[[], None]) -> list[str]:
        with streaming(server, orders, go_on) as (one, _, streams):
            other = server.other
            os.kill(other, number)
            eventually(lambda: one.ask("GET", "/ready")[0] == 503)
            order(orders, "")
            go_on()
            finished = list(streams[0])
            assert is_cut_off(streams[1])
            return finished

    code, lines = beside(client)
    assert code == 1
    assert '"finish_reason":"length"' in lines[-2]
    assert "HTTP process 1 ended with -9" in caplog.text
    assert ("HTTP process 1 does not answer" in caplog.text) == (number == signal.SIGSTOP)


def test_an_engine_that_is_killed(beside: RunBeside, orders: Path, caplog: pytest.LogCaptureFixture) -> None:
    def client(server: Processes, go_on: Callable[[], None]) -> tuple[list[list[str]], list[object]]:
        with streaming(server, orders, go_on) as (one, two, streams):
            os.kill(server.engine, signal.SIGKILL)
            told = [list(lines) for lines in streams]
            return told, [each.error("GET", "/ready") for each in (one, two)]

    code, (told, ready) = beside(client)
    assert code == 1
    for lines in told:
        assert '"code":"engine_failed"' in lines[-2]
        assert lines[-1] == "[DONE]"
    assert ready == [(503, "failed")] * 2
    assert "the engine's process ended with -9" in caplog.text
    assert "HTTP process" not in caplog.text


def test_a_first_process_that_is_killed_leaves_none(orders: Path, checkpoint: Path) -> None:
    with start(orders, checkpoint, *LIMITS) as process:
        server = Processes(listening_port(process), process.pid)
        left = [server.other, server.engine, *children(process.pid)]
        with server.connected(server.other) as two:
            order(orders, 2)
            lines = two.stream(**FORCED)
            next(lines)
            process.kill()
            assert is_cut_off(lines)
        order(orders, "")
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))
        assert "Traceback" not in process.communicate(timeout=30)[1]
