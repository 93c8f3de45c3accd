"""POST /admin/load: other weights while the server serves, and what clients see of it."""

import json
import math
import os
import pickle
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.server.harness import (
    Json,
    Listening,
    RunBeside,
    Running,
    Serve,
    chunks,
    events,
    eventually,
    listening,
    random_model,
)
from tests.server.test_operation import assert_law, samples
from thoughtbubbles.engine import Engine
from thoughtbubbles.model import Thoughtbubbles, Tokenizer, save_checkpoint
from thoughtbubbles.server.bridge.errors import LoadTimeoutError
from thoughtbubbles.server.bridge.process import run_engine_process
from thoughtbubbles.server.bridge.weights import read_weights, weights_version
from thoughtbubbles.server.keys import ApiKeys
from thoughtbubbles.server.service import Service
from thoughtbubbles.server.settings import ServerSettings

ADMIN = "sk-admin"
KEYS = {"admin_keys": ApiKeys.of([ADMIN], "here")}
GREEDY = {"prompt": "The river", "max_tokens": 12, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
Save = Callable[..., Path]
LOADED, REFUSED, FAILED = (("weight_loads_total", outcome) for outcome in ("loaded", "refused", "failed"))


@pytest.fixture(scope="session")
def other(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same shape with other weights."""
    model = random_model(264)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    folder = tmp_path_factory.mktemp("checkpoints") / "other"
    save_checkpoint(folder, model, tokenizer, {})
    return folder


@pytest.fixture
def save(tokenizer: Tokenizer, tmp_path: Path) -> Save:
    """Write a model as a checkpoint, with the tests' tokenizer or another."""

    def write(model: Thoughtbubbles, tokens: Tokenizer = tokenizer) -> Path:
        save_checkpoint(tmp_path / "foreign", model, tokens, {})
        return tmp_path / "foreign"

    return write


def load(server: Listening, checkpoint: Path | str, key: str = ADMIN) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/admin/load", json={"checkpoint": str(checkpoint)}, headers=headers, timeout=30)


def tokens(server: Listening, **body: object) -> tuple[str, list[int]]:
    """The fingerprint and the tokens of a greedy completion."""
    answer = server.complete(**{**GREEDY, **body})
    return answer["system_fingerprint"], answer["choices"][0]["token_ids"]


@contextmanager
def serving(checkpoint: Path, **settings: object) -> Iterator[Listening]:
    """A server of a checkpoint, as the command makes it."""
    with listening(Service.create(ServerSettings(checkpoint=checkpoint, threads=1, **KEYS, **settings))) as found:
        yield found


@pytest.fixture(params=["thread", "process"])
def real(request: pytest.FixtureRequest, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    """A server whose engine is on a thread, or in a process of its own as on a GPU."""
    if request.param == "process":
        monkeypatch.setattr("thoughtbubbles.server.service.run_engine", run_engine_process)
    with serving(checkpoint, model_name="tiny") as found:
        yield found


def test_answers_are_those_of_a_server_of_the_other_checkpoint(real: Listening, checkpoint: Path, other: Path) -> None:
    with serving(other) as fresh:
        wanted, wanted_version = tokens(fresh), fresh.client.get("/version").json()["weights_version"]
    before = tokens(real)
    assert before != wanted
    answer = load(real, other)
    assert answer.status_code == 200, answer.text
    old = real.client.get("/version").json()
    assert answer.json() == {
        "checkpoint": str(other), "model": "tiny", "model_revision": None, "weights_version": wanted_version,
        "previous_weights_version": before[0].rpartition("-")[2], "system_fingerprint": wanted[0],
    }  # fmt: skip
    assert tokens(real) == wanted
    assert {part["system_fingerprint"] for part in chunks(real, **GREEDY)} == {wanted[0]}
    assert (old["model"], old["weights_version"]) == ("tiny", wanted_version)
    (listed,) = real.client.get("/v1/models").json()["data"]
    assert (listed["id"], listed["weights_version"]) == ("tiny", wanted_version)
    found = samples(real)
    assert (found[LOADED], found[REFUSED], found[FAILED]) == (1, 0, 0)
    assert [name[-1] for name in found if name[0] == "model_info"] == [wanted_version]
    assert load(real, checkpoint).status_code == 200
    assert tokens(real) == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_embd": 16}, "n_embd is 16, not 32"),
        ({"fork_layers": (0, 2)}, "fork_layers is (0, 2), not (1, 2)"),
        ({"block_size": 32}, "block_size is 32, not 64"),
    ],
)
def test_another_shape_is_refused_before_anything_waits(
    setting: Json, message: str, administered: Running, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(Thoughtbubbles(replace(administered.engine.model.config, **setting)))
    monkeypatch.setattr(Engine, "pause_admission", lambda _: pytest.fail("requests were made to wait"))
    monkeypatch.setattr(
        "thoughtbubbles.model.checkpoint.read.read_weights", lambda *_: pytest.fail("weights were read")
    )
    refused(administered, folder, message)


def refused(server: Running, checkpoint: Path, message: str) -> None:
    """The checkpoint is refused with a reason, and the weights stay."""
    before, counted = tokens(server), samples(server)[REFUSED]
    answer = load(server, checkpoint)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "checkpoint_refused", "checkpoint")
    assert message in error["message"]
    assert tokens(server) == before
    assert samples(server)[REFUSED] == counted + 1
    assert server.client.get("/ready").status_code == 200


@pytest.fixture
def administered(serve: Serve) -> Iterator[Running]:
    with serve(**KEYS) as server:
        yield server


def test_another_vocabulary_is_refused(administered: Running, save: Save) -> None:
    swapped = Tokenizer({bytes([byte]): 255 - byte for byte in range(256)}, "swapped")
    refused(administered, save(random_model(264), swapped), "the tokenizer has other tokens")


def test_another_chat_template_is_refused_and_none_is_not(administered: Running, other: Path, tmp_path: Path) -> None:
    folder = copytree(other, tmp_path / "talking")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    refused(administered, folder, "the chat template is another")
    assert load(administered, other).status_code == 200  # `train` writes none


def test_what_is_no_whole_checkpoint_is_refused(administered: Running, other: Path, tmp_path: Path) -> None:
    refused(administered, tmp_path / "nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(administered, tmp_path / "empty", "config.json")
    torn = copytree(other, tmp_path / "torn") / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1000])
    refused(administered, torn.parent, "incomplete")
    broken = copytree(other, tmp_path / "broken") / "model.safetensors"
    weights = load_file(broken)
    weights["transformer.ln_f.weight"][3] = torch.nan
    save_file(weights, broken)
    refused(administered, broken.parent, "NaN or infinite: transformer.ln_f.weight (1 of 32)")
    refused(administered, other / "config.json", "not a folder")


def test_a_file_that_is_overwritten_after_it_was_read_changes_nothing(
    administered: Running, other: Path, tmp_path: Path
) -> None:
    """Tensors of a checkpoint are views of its files, and requests may take long to finish."""
    folder = copytree(other, tmp_path / "overwritten")
    read = read_weights(str(folder), administered.engine.model, administered.service.worker.model)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4000, os.SEEK_END)
        file.write(b"\1" * 4000)
    assert weights_version(read.tensors) == read.version


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"), (b"{}", "missing_required_parameter"), (b'{"checkpoint": 3}', "invalid_type"),
        (b'{"checkpoint": ""}', "empty_string"), (b'{"checkpoint": "a\\u0000b"}', "checkpoint_refused"),
    ],
)  # fmt: skip
def test_a_wrong_body(administered: Running, body: bytes, code: str) -> None:
    headers = {"authorization": f"Bearer {ADMIN}"}
    answer = administered.client.post("/admin/load", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_keys(serve: Serve, other: Path, tmp_path: Path) -> None:
    """An API key does not administer, and an admin key does not complete."""
    file = tmp_path / "keys"
    file.write_text("# the trainer\nsk-trainer\n")
    with serve(**KEYS, admin_keys_file=file, api_keys=ApiKeys.of(["sk-client"], "here")) as server:
        for key in ("sk-client", "sk-wrong"):
            answer = load(server, other, key)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_admin_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        answer = httpx.post(f"{server.url}/v1/completions", json={}, headers={"authorization": f"Bearer {ADMIN}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        for key in ("sk-trainer", ADMIN):
            assert load(server, other, key).status_code == 200
    with serve() as server:
        answer = load(server, other)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_disabled")


def let_it_be_read(server: Running) -> None:
    """Have the engine, which is blocked, begin the load that is queued, and wait until the checkpoint is in memory."""
    server.engine.pass_step()
    server.engine.wait_until_held()
    eventually(lambda: all(thread.name != "checkpoint" for thread in threading.enumerate()))


def test_who_runs_finishes_with_the_old_weights_and_who_waits_starts_with_the_new(
    administered: Running, other: Path
) -> None:
    """Streamed and whole, with choices of one request that wait for a batch slot; meanwhile no second load begins."""
    long: Json = {**GREEDY, "max_tokens": 30}
    old = tokens(administered, max_tokens=30)
    started = samples(administered)["request_accepted_total",]
    with ThreadPoolExecutor(4) as pool:
        with events(administered, **long, n=12) as stream:  # the batch has eight slots
            parts = [json.loads(next(stream))]
            administered.engine.hold()
            administered.engine.wait_until_held()
            loading = pool.submit(load, administered, other)
            waiting = pool.submit(tokens, administered, max_tokens=30)
            administered.wait_until_asked(2)
            let_it_be_read(administered)
            assert samples(administered)["request_accepted_total",] == started + 13
            administered.engine.let_go()
            while loading.running():
                second = load(administered, other)
                if second.status_code == 409:
                    assert second.json()["error"]["code"] == "load_in_progress"
                    break
            parts += [json.loads(part) for part in stream if part != "[DONE]"]
        assert loading.result(30).status_code == 200
        new = waiting.result(30)
    assert {part["system_fingerprint"] for part in parts} == {old[0]}
    for index in range(12):
        mine = [choice for part in parts for choice in part["choices"] if choice["index"] == index]
        assert [token for choice in mine for token in choice["token_ids"]] == old[1]
    assert new == tokens(administered, max_tokens=30)
    assert new[0] != old[0]
    assert new[1] != old[1]
    assert_law(samples(administered))


def test_a_second_load_is_refused_while_the_first_waits(administered: Running, other: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(tokens, administered)
        administered.engine.hold(after=3)
        administered.engine.wait_until_held()
        first = pool.submit(load, administered, other)
        administered.wait_until_asked()
        second = load(administered, other)
        assert (second.status_code, second.json()["error"]["code"]) == (409, "load_in_progress")
        administered.engine.let_go()
        assert first.result(30).status_code == 200
        assert running.result(30)[0] != tokens(administered)[0]
    assert samples(administered)["request_rejected_total", "load_in_progress"] == 1
    assert load(administered, other).status_code == 200


def test_a_load_does_not_wait_for_ever(serve: Serve, other: Path) -> None:
    """A request that never ends would keep all others waiting: the load is given up, and they start."""
    patient = {"request_timeout_seconds": math.inf, "load_wait_seconds": 1e-9}
    with serve(**KEYS, **patient) as server, ThreadPoolExecutor(3) as pool:
        before = tokens(server)
        running = pool.submit(tokens, server, max_tokens=40)
        server.engine.hold(after=3)
        server.engine.wait_until_held()
        loading, waiting = pool.submit(load, server, other), pool.submit(tokens, server)
        server.wait_until_asked(2)
        let_it_be_read(server)
        for _ in range(5):  # the first of these steps begins the pause
            server.engine.pass_step()
            server.engine.wait_until_held()
        answer = loading.result(30)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], answer.headers["x-should-retry"]) == (408, "load_timeout", "false")
        assert "load_wait_seconds" in error["message"]
        assert not running.done()
        server.engine.let_go()
        assert waiting.result(30) == before
        assert running.result(30)[0] == before[0]
        assert samples(server)[FAILED] == 1
        assert load(server, other).status_code == 200


def test_a_load_that_is_given_up_is_reported_by_a_process() -> None:
    error = pickle.loads(pickle.dumps(LoadTimeoutError(2.5)))
    assert (error.seconds, str(error)) == (2.5, "the requests that ran did not finish within 2.5 seconds")


@pytest.mark.parametrize("fault", [MemoryError("no memory is left"), RuntimeError("a device failed")])
def test_a_failure_keeps_the_old_weights(
    fault: Exception, administered: Running, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tokens(administered)

    def fail() -> None:
        raise fault

    with monkeypatch.context() as failing:
        failing.setattr(administered.engine.executor, "read_weights", fail)
        answer = load(administered, other)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "load_failed")
    assert tokens(administered) == before
    assert samples(administered)[FAILED] == 1
    assert load(administered, other).status_code == 200
    assert tokens(administered) != before


def test_an_engine_that_fails_ends_the_load(administered: Running, other: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(administered.error, 500, **GREEDY)
        administered.engine.hold()
        administered.engine.wait_until_held()
        loading = pool.submit(load, administered, other)
        administered.wait_until_asked()
        administered.engine.fault = RuntimeError("a tensor burst")
        administered.engine.let_go()
        answer = loading.result(30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_failed")
        assert running.result(30)["code"] == "engine_failed"


def test_a_load_goes_on_without_its_client(administered: Running, other: Path) -> None:
    before = tokens(administered)
    body = json.dumps({"checkpoint": str(other)}).encode()
    head = f"POST /admin/load HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {ADMIN}\r\ncontent-length: {len(body)}"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(tokens, administered)
        administered.engine.hold()
        administered.engine.wait_until_held()
        with socket.create_connection(("127.0.0.1", int(administered.url.rpartition(":")[2]))) as client:
            client.sendall(head.encode() + b"\r\n\r\n" + body)
            administered.wait_until_asked()
        administered.engine.let_go()
        assert running.result(30) == before
    eventually(lambda: samples(administered)[LOADED] == 1)
    assert tokens(administered) != before


def test_a_server_that_stops_ends_the_load(run_beside: RunBeside, other: Path, tmp_path: Path) -> None:
    """Requests that run have their time; the weights are not replaced any more."""
    file = tmp_path / "keys"
    file.write_text(ADMIN)

    def client(server: Running) -> tuple[int, str]:
        with ThreadPoolExecutor(2) as pool:
            running: Future[Json] = pool.submit(server.error, 503, **GREEDY)
            server.engine.hold()
            server.engine.wait_until_held()
            loading = pool.submit(load, server, other)
            server.wait_until_asked()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            eventually(lambda: server.service.worker.draining)
            refused_load = load(server, other)
            assert (refused_load.status_code, refused_load.json()["error"]["code"]) == (503, "draining")
            answer = loading.result(30)
            server.engine.let_go()
            assert running.result(30)["code"] == "draining"
            return answer.status_code, answer.json()["error"]["code"]

    ended = run_beside(client, "--admin-keys-file", str(file), "--drain-seconds", "1")
    assert ended == (0, (503, "draining"))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.sample(1)
def test_random_clients_while_the_weights_change(seed: int, real: Listening, checkpoint: Path, other: Path) -> None:
    """Every answer has the tokens of the weights that its fingerprint names."""
    dice = random.Random(seed)
    bodies: list[Json] = [
        {
            **GREEDY,
            "prompt": "The river " * dice.randint(1, 4),
            "max_tokens": dice.randint(1, 20),
            "n": dice.choice([1, 3]),
            "temperature": dice.choice([0, 1]),
            "seed": dice.randrange(9),
            "fork_ratio": dice.choice([None, 1.5]),
        }
        for _ in range(60)
    ]

    def ask(body: Json) -> tuple[str, list[list[int]]]:
        answer = httpx.post(f"{real.url}/v1/completions", json=body, timeout=30).json()
        return answer["system_fingerprint"], [choice["token_ids"] for choice in answer["choices"]]

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, body) for body in bodies]
        for folder in (other, checkpoint) * 3:
            assert load(real, folder).status_code == 200
        answers = [each.result(30) for each in asked]
    wanted: dict[str, list[list[list[int]]]] = {}
    for folder in (other, checkpoint):
        assert load(real, folder).status_code == 200
        fingerprint = tokens(real)[0]
        wanted[fingerprint] = [ask(body)[1] for body in bodies]
    assert {fingerprint for fingerprint, _ in answers} <= wanted.keys()
    for index, (fingerprint, found) in enumerate(answers):
        assert found == wanted[fingerprint][index]
