"""docs/TRAINING.md, "Serve while it trains": a server follows the best checkpoint of a run, by the page's script."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.server.serving import read_metrics, serving
from tests.server.harness import eventually
from tests.training.conftest import data  # noqa: F401 (fixtures are found by their names here)
from tests.training.harness import VOCAB
from thoughtbubbles.engine import Engine, SamplingParams
from thoughtbubbles.model import load_checkpoint
from thoughtbubbles.server.bridge.weights import weights_version

PAGE = (Path(__file__).parents[2] / "docs" / "TRAINING.md").read_text(encoding="utf-8")
SHAPE = ("--recipe", "tiny", "--vocab-size", str(VOCAB), "--n-layer", "2", "--n-embd", "32", "--n-head", "2",
         "--fork-layers", "1", "--block-size", "32", "--max-block-size", "64")  # fmt: skip
PROMPT = "Then the cat"
SECONDS = 240


def train(folder: Path, out: Path, *flags: str) -> list[str]:
    """The command of a run with the corpus in `folder`."""
    return [sys.executable, "-m", "thoughtbubbles", "train", *SHAPE, "--data", str(folder), "--out", str(out),
            "--threads", "1", "--batch-size", "4", "--warmup-steps", "2", "--validate-every", "10", *flags]  # fmt: skip


@contextmanager
def running(*command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(url: str) -> tuple[str, list[int]]:
    """The fingerprint and the greedy tokens of a completion."""
    body = {"prompt": PROMPT, "max_tokens": 16, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    answered: Any = httpx.post(f"{url}/v1/completions", json=body, timeout=60).raise_for_status().json()
    return answered["system_fingerprint"], answered["choices"][0]["token_ids"]


def fresh(folder: Path) -> tuple[str, list[int]]:
    """The version of a checkpoint's weights, and what a new engine generates with them."""
    checkpoint = load_checkpoint(folder)
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)
    [completion] = Engine(checkpoint.model, checkpoint.tokenizer).generate([PROMPT], params)
    return weights_version(checkpoint.model.state_dict()), list(completion.token_ids)


@pytest.mark.slow
def test_a_server_follows_a_run(data: Path, tmp_path: Path) -> None:  # noqa: F811 (the fixture)
    """The server of a model that trains on has the new weights without a restart, and no request fails."""
    (script,) = re.findall(r'```python\n("""Have a server follow.*?)```', PAGE, re.DOTALL)
    (tmp_path / "follow.py").write_text(script, encoding="utf-8")
    (tmp_path / "keys").write_text("sk-admin\n", encoding="utf-8")
    served, best = tmp_path / "short" / "best", tmp_path / "long" / "best"
    subprocess.run(train(data, served.parent, "--steps", "10"), check=True, capture_output=True)
    first = fresh(served)
    with ExitStack() as stack:
        options = ("--checkpoint", str(served), "--threads", "1", "--admin-keys-file", str(tmp_path / "keys"))
        url, _ = stack.enter_context(serving(*options))
        answered = answer(url)
        assert (answered[0].rpartition("-")[2], answered[1]) == first
        follow = (sys.executable, str(tmp_path / "follow.py"), str(best), str(tmp_path / "keys"), url)
        stack.enter_context(running(*follow, log=tmp_path / "follow.log"))
        longer = train(data, best.parent, "--steps", "240", "--start", str(served))
        trainer = stack.enter_context(running(*longer, log=tmp_path / "train.log"))
        eventually(best.exists, seconds=SECONDS)
        trainer.send_signal(signal.SIGSTOP)  # on a busy machine the run may end before the server has followed once
        eventually(lambda: answer(url)[0] != answered[0], seconds=SECONDS)
        trainer.send_signal(signal.SIGCONT)
        eventually(lambda: answer(url) and trainer.poll() is not None, seconds=SECONDS)
        assert trainer.returncode == 0, (tmp_path / "train.log").read_text()
        last = fresh(best)
        assert last[0] != first[0]
        eventually(lambda: answer(url)[0].endswith(last[0]), seconds=60)
        assert answer(url)[1] == last[1] != first[1]
        metrics = read_metrics(url)
    assert metrics['weight_loads_total{outcome="loaded"}'] >= 2
    assert metrics['weight_loads_total{outcome="failed"}'] == 0
