"""`thoughtbubbles serve` from its first line to its exit code."""

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import server.service
from server.__main__ import add_arguments, main, run
from tests.server.harness import GatedEngine, MakeEngine, eventually

ROOT = Path(__file__).parents[2]


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(given)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


Client = Callable[[httpx.Client, GatedEngine], object]
RunBeside = Callable[..., tuple[int, object]]


@pytest.fixture
def run_beside(make_engine: MakeEngine, port: int, monkeypatch: pytest.MonkeyPatch) -> RunBeside:
    """Run the command here, where signals arrive, and a client beside it: the exit code and the client's result."""

    def both(client: Client, *given: str) -> tuple[int, object]:
        engines: Future = Future()

        def load(settings: object) -> tuple:
            made = make_engine(settings)
            engines.set_result(made[0])
            return made

        def beside() -> object:
            engine = engines.result(30)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
                eventually(lambda: http.get("/ready").status_code == 200)
                try:
                    return client(http, engine)
                finally:
                    engine.let_go()

        monkeypatch.setattr(server.service, "load_model", load)
        with ThreadPoolExecutor() as pool:
            told = pool.submit(beside)
            code = run(arguments("--port", str(port), *given))
            return code, told.result(30)

    return both


@contextlib.contextmanager
def streaming(http: httpx.Client, **body: object) -> Iterator[Iterator[str]]:
    with http.stream("POST", "/v1/completions", json={"stream": True, **body}) as response:
        yield (line for line in response.iter_lines() if line)


def test_sigterm_lets_running_streams_finish_and_takes_no_more(run_beside: RunBeside) -> None:
    def client(http: httpx.Client, engine: GatedEngine) -> list[str]:
        engine.hold(after=1)
        with streaming(http, max_tokens=20, ignore_eos=True) as lines:
            told = [next(lines)]
            engine.wait_until_held()
            os.kill(os.getpid(), signal.SIGTERM)
            while (ready := http.get("/ready")).status_code == 200:
                pass
            assert ready.json()["error"]["code"] == "draining"
            refused = http.post("/v1/completions", json={})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert refused.headers["retry-after"] == "1"
            assert http.get("/health").status_code == 200
            engine.let_go()
            return [*told, *lines]

    code, told = run_beside(client)
    assert code == 0
    assert told[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in told[-2]


def test_a_stream_that_does_not_end_is_cut_at_the_deadline(run_beside: RunBeside) -> None:
    def client(http: httpx.Client, engine: GatedEngine) -> bool:
        engine.hold(after=1)
        with streaming(http, max_tokens=20, ignore_eos=True) as lines:
            next(lines)
            engine.wait_until_held()
            os.kill(os.getpid(), signal.SIGTERM)
            with contextlib.suppress(httpx.RemoteProtocolError):
                return "data: [DONE]" in list(lines)
            return False

    assert run_beside(client, "--drain-seconds", "0.1") == (0, False)


def test_a_failed_engine_ends_the_process_with_1(run_beside: RunBeside, caplog: pytest.LogCaptureFixture) -> None:
    def client(http: httpx.Client, engine: GatedEngine) -> tuple[int, str]:
        engine.fault = RuntimeError("a tensor burst")
        answer = http.post("/v1/completions", json={})
        return answer.status_code, http.get("/ready").json()["error"]["code"]

    assert run_beside(client) == (1, (500, "failed"))
    assert "a tensor burst" in caplog.text


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command with arguments it refuses: what it prints."""

    def run_main(*given: str) -> str:
        monkeypatch.setattr(sys, "argv", ["serve", *given])
        assert main() == 2
        return capsys.readouterr().err

    return run_main


def test_a_port_in_use_is_one_clear_line(port: int, refusal: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", port)):
        told = refusal("--port", str(port))
    assert re.fullmatch(rf".*: cannot listen on 127\.0\.0\.1:{port} \(.*\); choose another with --port\n", told)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--checkpoint", "/nowhere/at/all"], "/nowhere/at/all: no such folder"),
        (["--dtype", "int3"], "dtype must be float32 or bfloat16, not 'int3'"),
        (["--port", "70000"], "port must be from 0 to 65535, not 70000"),
        (["--max-waiting-streams", "0"], "max_waiting_streams must be above 0, not 0"),
        (["--device", "toaster"], "device toaster cannot be used"),
    ],
)
def test_what_cannot_be_served_is_one_clear_line(
    given: list[str], reason: str, checkpoint: Path, refusal: Callable[..., str]
) -> None:
    told = refusal("--checkpoint", str(checkpoint), "--port", "0", *given)
    assert reason in told
    assert told.count("\n") == 1


def test_the_command_serves_and_says_how_to_try_it(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "server", "--checkpoint", str(checkpoint), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        told = ""
        while "curl" not in told:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            told += line
        told += process.stdout.readline()
        assert re.search(r"serves tiny \([\d,]+ parameters\) on cpu, torch \S+, segments by torch", told)
        url, body = re.search(r"curl -N (\S+) -H .*\\\n +-d '(.*)'", told).groups()
        answer = httpx.post(url, content=body, timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
        streamed = httpx.post(url, content=body.replace("64", "20"), timeout=30).text
        assert streamed.endswith("data: [DONE]\n\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
