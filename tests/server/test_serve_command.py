"""`thoughtbubbles serve` from its first line to its exit code."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.server.harness import RunBeside, Running, eventually
from thoughtbubbles.server.__main__ import main

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def streaming(http: httpx.Client, **body: object) -> Iterator[Iterator[str]]:
    # Every token a letter: half a character would not be told before the next token, for which the engine may be held.
    letters = {"logit_bias": {"65": 100}}
    with http.stream("POST", "/v1/completions", json={"stream": True, **letters, **body}) as response:
        yield (line for line in response.iter_lines() if line)


def test_sigterm_lets_running_streams_finish_and_takes_no_more(run_beside: RunBeside) -> None:
    def client(server: Running) -> list[str]:
        http, engine = server.client, server.engine
        engine.hold(after=1)
        with streaming(http, max_tokens=20) as lines:
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


@pytest.mark.parametrize(("signals", "drain_seconds"), [(1, "0.1"), (2, "600")])
def test_who_runs_at_the_deadline_or_at_a_second_sigterm_is_told(
    run_beside: RunBeside, signals: int, drain_seconds: str
) -> None:
    def client(server: Running) -> tuple[list[str], httpx.Response]:
        http, engine = server.client, server.engine
        engine.hold(after=1)
        url = f"{server.url}/v1/completions"
        with streaming(http, max_tokens=20) as lines, ThreadPoolExecutor() as pool:
            next(lines)
            engine.wait_until_held()
            whole = pool.submit(httpx.post, url, json={"max_tokens": 20}, timeout=30)
            server.wait_until_asked()
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGTERM)
                eventually(lambda: http.get("/ready").status_code == 503)
            return list(lines), whole.result(30)

    code, (lines, whole) = run_beside(client, "--drain-seconds", drain_seconds)
    assert code == 0
    assert '"code":"draining"' in lines[-2]
    assert lines[-1] == "data: [DONE]"
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "draining")
    assert whole.headers["retry-after"] == "1"


def test_a_failed_engine_ends_the_process_with_1(run_beside: RunBeside, caplog: pytest.LogCaptureFixture) -> None:
    def client(server: Running) -> tuple[int, str]:
        http, engine = server.client, server.engine
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


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])  # of no machine (RFC 5737, RFC 6761)
def test_a_host_that_is_not_this_one_is_one_clear_line(host: str, refusal: Callable[..., str]) -> None:
    told = refusal("--host", host, "--port", "0")
    assert re.fullmatch(rf".*: cannot listen on {re.escape(host)}:0 \(.*\); choose another with --host\n", told)


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
    command = [
        sys.executable,
        "-m",
        "thoughtbubbles.server",
        "--checkpoint",
        str(checkpoint),
        "--port",
        "0",
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        told = ""
        while "curl" not in told:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            told += line
        told += process.stdout.readline()
        told_of = (
            r"serves tiny \([\d,]+ parameters\) on cpu, executor (native \(\w+\)|portable), torch \S+, segments by"
        )
        assert re.search(told_of, told)
        url, body = re.search(r"curl -N (\S+) -H .*\\\n +-d '(.*)'", told).groups()
        answer = httpx.post(url, content=body, timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
        streamed = httpx.post(url, content=body.replace("64", "20"), timeout=30).text
        assert streamed.endswith("data: [DONE]\n\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert [re.search(r"status=(\d+)", line).group(1) for line in process.stderr] == ["400", "200"]


@pytest.mark.parametrize("command", ["thoughtbubbles.server", "thoughtbubbles serve"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_torch_is_imported_ends_it(command: str, number: signal.Signals, tmp_path: Path) -> None:
    """Process 1 of a container has no default for SIGTERM: only a handler that is there already sees it."""
    (tmp_path / "torch.py").write_text(f"import os\nos.kill(os.getpid(), {number:d})\nprint('went unseen')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    told = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
