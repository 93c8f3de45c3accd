"""Faults and their outcomes: the process's exit code, and every client's error."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.server.harness import CONTEXT, RunBeside, Running, Serve, eventually
from tests.server.test_operation import assert_law, samples
from thoughtbubbles.server.__main__ import main

ROOT = Path(__file__).parents[2]
FORCED = {"max_tokens": 20, "logit_bias": {"97": 100}}


@contextmanager
def bursting(server: Running, call: int) -> Iterator[None]:
    """The forward pass of the engine, whichever executor has it, raises when it is called for this time."""
    forward = server.engine.executor.paged.forward  # type: ignore[attr-defined]
    extend, calls = forward.extend, iter(range(1, call))

    def count(chunks: object) -> object:
        if next(calls, None) is None:
            raise RuntimeError("a tensor burst")
        return extend(chunks)

    forward.extend = count
    try:
        yield
    finally:
        forward.extend = extend


def told(server: Running, **body: object) -> str:
    """The last but one event of a stream, which is its end or an error, before [DONE]."""
    lines = httpx.post(f"{server.url}/v1/completions", json={"stream": True, **body}, timeout=30).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return lines[-3]


def test_a_forward_that_raises_at_step_10(run_beside: RunBeside, caplog: pytest.LogCaptureFixture) -> None:
    """Exit code 1; every client, streamed or not, gets an error; /ready says failed."""

    def client(server: Running) -> tuple[list[str], int, str]:
        server.engine.hold()
        with bursting(server, 10), ThreadPoolExecutor() as pool:
            streams = [pool.submit(told, server, **FORCED) for _ in range(3)]
            whole = pool.submit(server.client.post, "/v1/completions", json=FORCED)
            eventually(lambda: len(server.service.worker._by_request) == 4)
            server.engine.let_go()
            return [each.result(30) for each in streams], whole.result(30).status_code, _ready(server)

    code, (streams, status, ready) = run_beside(client)
    assert code == 1
    assert all('"code":"engine_failed"' in each for each in streams)
    assert (status, ready) == (500, "failed")
    assert "a tensor burst" in caplog.text


def _ready(server: Running) -> str:
    return server.client.get("/ready").json()["error"]["code"]


HANGING = """
import sys, threading
from thoughtbubbles import engine
step = engine.Engine.step
steps = []

def hang(self):
    steps.append(self)
    if len(steps) > 4:  # two are the warm-up's
        threading.Event().wait()
    return step(self)

engine.Engine.step = hang
from thoughtbubbles.server.__main__ import main
sys.exit(main())
"""


def test_a_step_that_never_returns(checkpoint: Path) -> None:
    """The watchdog ends the process within ten seconds with code 1, and the stream with an error."""
    command = [sys.executable, "-c", HANGING, "--checkpoint", str(checkpoint), "--port", "0", "--threads", "1",
               "--stall-seconds", "0.2", "--watchdog-seconds", "1"]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        head = "".join(iter(process.stdout.readline, "\n"))
        url = re.search(r"http://[\d.:]+", head)[0]
        with ThreadPoolExecutor() as pool:
            stream = pool.submit(httpx.post, f"{url}/v1/completions", json={"stream": True, **FORCED}, timeout=30)
            eventually(lambda: httpx.get(f"{url}/ready").status_code == 503)
            assert httpx.get(f"{url}/health").status_code == 200
            lines = stream.result(30).text.split("\n\n")
        assert process.wait(10) == 1
        assert '"code":"engine_failed"' in lines[-3]
        assert lines[-2:] == ["data: [DONE]", ""]
        assert "a step has not returned" in process.stderr.read()


def test_a_pool_that_is_full(serve: Serve) -> None:
    """Requests that do not fit give their pages back, start again, and are answered as if alone."""
    body = {"prompt": "x" * 20, "max_tokens": CONTEXT - 20, "seed": 5, "ignore_eos": True}
    with serve() as server:
        alone = server.complete(**body)["choices"][0]["text"]
    with serve(cache_bytes=1 << 17) as server, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.complete(**body)["choices"][0]["text"], range(8)))
        found = samples(server)
        assert found["preemptions_total",] > 0
        assert_law(found)
        assert found["request_finished_total", "length"] == 8
    assert set(answers) == {alone}


def test_a_torn_checkpoint(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the folder and says what is wrong with it, and code 2."""
    torn = shutil.copytree(checkpoint, tmp_path / "torn")
    weights = torn / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    monkeypatch.setattr(sys, "argv", ["serve", "--checkpoint", str(torn), "--port", "0"])
    assert main() == 2
    printed = capsys.readouterr().err
    assert f"{torn}: " in printed
    assert "incomplete" in printed
    assert printed.count("\n") == 1


def test_sigterm_in_the_middle_of_16_streams(run_beside: RunBeside) -> None:
    """All finish, and the exit code is 0."""

    def client(server: Running) -> list[str]:
        server.engine.hold(after=3)
        with ThreadPoolExecutor(16) as pool:
            streams = [pool.submit(told, server, **FORCED) for _ in range(16)]
            server.engine.wait_until_held()
            eventually(lambda: len(server.service.worker._by_request) == 16)
            os.kill(os.getpid(), signal.SIGTERM)
            eventually(lambda: server.client.get("/ready").status_code == 503)
            server.engine.let_go()
            return [each.result(30) for each in streams]

    code, streams = run_beside(client)
    assert code == 0
    assert len(streams) == 16
    assert all('"finish_reason":"length"' in each for each in streams)
