"""Commands with hub ids, against a hub on this machine."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import torch

from tests.model.checkpoint.small_hub import TOKEN, SmallHub, small_hub
from thoughtbubbles.model import CheckpointError, Thoughtbubbles, Tokenizer, load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[3]
RUNNER = """
import contextlib, io, json, os, sys
import thoughtbubbles.model.checkpoint.inspection  # torch, once for all
from thoughtbubbles import main

def outcome(argv):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(argv)
    return code, out.getvalue(), err.getvalue()

for line in sys.stdin:
    environment, commands = json.loads(line)
    if os.fork() == 0:
        os.environ.update(environment)
        try:
            print(json.dumps([outcome(command.split()) for command in commands]), flush=True)
        finally:
            print(flush=True)
            os._exit(0)
    os.wait()
"""
CARD = b"# A model\n"


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def hub() -> Iterator[SmallHub]:
    with small_hub() as hub:
        yield hub


@pytest.fixture
def files(tmp_path: Path, model: Thoughtbubbles, tokenizer: Tokenizer) -> dict[str, bytes]:
    """A checkpoint, and a pickle that nobody may download."""
    save_checkpoint(tmp_path / "saved", model, tokenizer, {"step": 7})
    return {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} | {"pytorch_model.bin": b"pickle"}


Run = Callable[..., list[Outcome]]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Run `thoughtbubbles` with each line of arguments, all in one new process: huggingface_hub reads HF_* once."""
    argv = [sys.executable, "-c", RUNNER]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    inherited |= {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, env=inherited, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdin is not None
        assert runner.stdout is not None

        def answer(environment: dict[str, str], *commands: str) -> list[Outcome]:
            print(json.dumps([environment, commands]), file=runner.stdin, flush=True)
            line, last = runner.stdout.readline(), runner.stdout.readline()
            assert last == "\n", "the process of the commands failed"
            return [Outcome(*each) for each in json.loads(line)]

        yield answer
        runner.stdin.close()


@pytest.fixture
def environment(tmp_path: Path, hub: SmallHub) -> dict[str, str]:
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    return settings | {"NO_PROXY": "127.0.0.1"}


def test_a_hub_id_is_downloaded_once_without_pickles(
    run: Run, hub: SmallHub, environment: dict[str, str], files: dict[str, bytes]
) -> None:
    commit = hub.add("org/tiny", files | {"README.md": CARD}, cuts=1)
    newer = hub.repositories["org/tiny"].commit({"README.md": b"# Newer\n"})
    found, old = run(environment, "inspect org/tiny --json", f"inspect org/tiny@{commit} --json")
    assert [json.loads(each.out)["revision"] for each in (found, old)] == [newer, commit]
    downloads = {request.rpartition("/")[2] for request in hub.requests if request.startswith("GET /org/")}
    assert downloads == {"README.md", "config.json", "model.safetensors", "tokenizer.tiktoken"}  # the cut one resumed

    hub.requests.clear()
    nowhere = environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    cached, absent = run(nowhere, "inspect org/tiny", "inspect org/absent")
    assert cached.out.startswith(f"org/tiny at {newer}\n")
    assert absent.err.endswith("127.0.0.1:9 cannot be reached, and the cache has no complete copy of revision main\n")
    cached, absent = run(environment | {"HF_HUB_OFFLINE": "1"}, "inspect org/tiny", "inspect org/absent")
    assert cached.out.startswith(f"org/tiny at {newer}\n")
    assert absent.err.endswith("HF_HUB_OFFLINE is set, and the cache has no complete copy of revision main\n")
    assert hub.requests == []


def test_refusals_are_one_line_and_name_both_readings(
    run: Run, hub: SmallHub, environment: dict[str, str], files: dict[str, bytes]
) -> None:
    pickles = {name: content for name, content in files.items() if name != "model.safetensors"}
    hub.add("org/tiny", files)
    hub.add("org/private", files, private=True)
    hub.add("org/gated", files, gated=True)
    hub.add("org/gpt2", {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": b""})
    hub.add("org/pickles", pickles)
    hub.add("org/empty", {"README.md": CARD})
    hub.add("org/torn", files | {"model.safetensors": files["model.safetensors"][:-9]})
    reasons = {
        "org/absent": f"{hub.url} has no such repository; a private one needs HF_TOKEN",
        "org/private": f"{hub.url} has no such repository; a private one needs HF_TOKEN",
        "org/gated": f"it is gated: ask for access at {hub.url}/org/gated, then set HF_TOKEN",
        "org/tiny@v2": "it has no revision v2",
        "org/gpt2": "config.json is not a checkpoint's: its model_type is 'gpt2'",
        "org/pickles": "it has no model.safetensors, and weights of another form, such as pytorch_model.bin,"
        " are not read",
        "org/empty": "it has no config.json, which every checkpoint has",
    }
    *refused, torn = run(environment, *(f"inspect {name}" for name in reasons), "inspect org/torn")
    for (name, reason), outcome in zip(reasons.items(), refused, strict=True):
        both = f"{name.partition('@')[0]}: no such folder; as a repository on a hub: {reason}"
        assert outcome == (2, "", f"thoughtbubbles: error: {both}\n")
    assert torn.code == 2
    assert torn.err.count("\n") == 1
    assert "incomplete" in torn.err.lower()
    assert not any(".bin" in request for request in hub.requests)
    assert not any("gpt2" in request and "safetensors" in request for request in hub.requests)


def test_push_makes_a_repository_that_loads(
    run: Run,
    hub: SmallHub,
    environment: dict[str, str],
    files: dict[str, bytes],
    model: Thoughtbubbles,
) -> None:
    tmp_path = Path(environment["HF_HOME"]).parent
    saved = tmp_path / "saved"
    (saved / "pytorch_model.bin").write_bytes(b"pickle")
    first, *refused = run(
        environment, f"push {saved} org/new", f"push {saved} new", f"push {tmp_path} org/new", f"push {saved} org/a@b"
    )
    assert first == (2, "", f"thoughtbubbles: error: org/new was not uploaded: {hub.url} answered 401: Unauthorized\n")
    assert [each.code for each in refused] == [2, 2, 2]
    assert "'new' is not a repository's name, which is org/name" in refused[0].err
    assert hub.repositories == {}
    (away,) = run(environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}, f"push {saved} org/new")
    assert away.err == "thoughtbubbles: error: org/new was not uploaded: http://127.0.0.1:9 cannot be reached\n"

    authorized = environment | {"HF_TOKEN": TOKEN}
    pushed, again, read = run(
        authorized,
        f"push {saved} org/new --private",
        f"push {saved} org/new --revision second",
        "inspect org/new@second --json",
    )
    found = hub.repositories["org/new"]
    assert found.private
    assert pushed.out == f"{hub.url}/org/new/commit/{found.branches['main']}\n"
    assert again.code == 0
    assert json.loads(read.out)["provenance"] == {"step": 7}
    content = found.commits[found.branches["main"]]
    assert {"tokenizer.json", "modeling_thoughtbubbles.py", "README.md"} <= content.keys()
    assert "pytorch_model.bin" not in content
    assert content["README.md"].startswith(b"---\nlibrary_name: thoughtbubbles\n")
    for name, data in content.items():
        (tmp_path / "downloaded").mkdir(exist_ok=True)
        (tmp_path / "downloaded" / name).write_bytes(data)
    loaded = load_checkpoint(tmp_path / "downloaded").model
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_a_server_tells_the_revision(hub: SmallHub, environment: dict[str, str], files: dict[str, bytes]) -> None:
    commit = hub.add("org/tiny", files)
    argv = [sys.executable, "-m", "thoughtbubbles", "serve", "org/tiny@main", "--port", "0", "--executor", "portable"]
    with subprocess.Popen(argv, env=os.environ | environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            first, second = server.stdout.readline(), server.stdout.readline()
            assert f" serves org/tiny at {commit} (" in first
            (address,) = re.findall(r"http://[\d.:]+", second)
            version, models = httpx.get(f"{address}/version").json(), httpx.get(f"{address}/v1/models").json()
        finally:
            server.terminate()
    assert (version["model"], version["model_revision"]) == ("org/tiny", commit)
    assert (models["data"][0]["id"], models["data"][0]["revision"]) == ("org/tiny", commit)


def test_a_folder_wins_over_a_hub_id(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "saved").rename(tmp_path / "org" / "tiny")
    monkeypatch.chdir(tmp_path)
    checkpoint = load_checkpoint("org/tiny")
    assert (checkpoint.name, checkpoint.revision) == ("tiny", None)
    (tmp_path / "org" / "tiny" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"org/tiny/config.json: no such file"):
        load_checkpoint("org/tiny")


@pytest.mark.parametrize("name", ["gpt2", "./org/tiny", "/org/tiny", "org/tiny/more", "../tiny", "org/", "org/tiny@"])
def test_other_names_are_no_hub_ids(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder, and no hub id, which is org/name or org/name@revision"):
        load_checkpoint(name)
