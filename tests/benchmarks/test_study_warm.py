"""What runs will draw is compiled once, ahead of them, and by nobody who outlives the study."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.study_plan import Study, read_study
from benchmarks.study_warm import batches_to_compile, compiled_ahead, main
from tests.benchmarks.harness import TINY
from training.schedule import RATIO_LEVELS, ratio

RANDOM = """
[arms.random]
seeds = [0, 1]
steps = 90
batch_size = 1
max_block_size = 48
random_ratio = true
compile = true
"""


@pytest.fixture
def random(toml: Path) -> Study:
    toml.write_text(TINY.replace("[[claims]]", f"{RANDOM}\n[[claims]]", 1), encoding="utf-8")
    return read_study(toml)


def test_each_ratio_is_compiled_once(random: Study) -> None:
    found = batches_to_compile(random.runs)
    assert sorted(ratio(number, run.model, run.training) or 0 for run, number in found) == [
        1 + 2 * level / 8 for level in range(RATIO_LEVELS)
    ]
    assert not batches_to_compile([run for run in random.runs if run.arm != "random"])


def test_what_another_run_always_has_is_its_own_to_compile(toml: Path) -> None:
    """Of the same shape, batch and ratio."""
    always = RANDOM.replace("random_ratio = true\n", "").replace("arms.random", "arms.always")
    toml.write_text(TINY.replace("[[claims]]", f"{RANDOM}{always}\n[[claims]]", 1), encoding="utf-8")
    found = batches_to_compile(read_study(toml).runs)
    assert sorted(ratio(number, run.model, run.training) or 0 for run, number in found) == [
        1 + 2 * level / 8 for level in range(RATIO_LEVELS - 1)
    ]


def test_a_batch_is_learned_from_at_its_ratio(random: Study, toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float | None] = []

    def learn(loss: object, windows: object, drawn: float | None, noise: object) -> None:
        seen.append(drawn)
        raise InterruptedError

    monkeypatch.setattr("training.step.NextTokenLoss.forward", learn)
    monkeypatch.setattr("training.step._compile", lambda *args, **kwargs: None)
    monkeypatch.setattr("os.nice", lambda by: by)
    run, number = batches_to_compile(random.runs)[2]
    monkeypatch.setattr(sys, "argv", ["study_warm", str(toml), run.arm, str(run.seed), str(number)])
    with pytest.raises(InterruptedError):
        main()
    assert seen == [ratio(number, run.model, run.training)]


def test_nobody_is_left_behind(random: Study, toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    say = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['CUDA_VISIBLE_DEVICES']]))"
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{say}" "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    expected = batches_to_compile(random.runs)
    with compiled_ahead(random.runs, toml, ["0", "1"], {}, tmp_path / "told.txt") as processes:
        assert [process.wait() for process in processes] == [0] * len(expected)
    told = sorted(map(json.loads, (tmp_path / "told.txt").read_text(encoding="utf-8").splitlines()))
    command = ["-m", "benchmarks.study_warm", str(toml)]
    assert told == sorted(
        [[*command, run.arm, str(run.seed), str(number)], str(place % 2)]
        for place, (run, number) in enumerate(expected)
    )
    script.write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
    with compiled_ahead(random.runs, toml, ["0"], {}, tmp_path / "told.txt") as processes:
        pass
    assert [process.returncode for process in processes] == [-9] * len(expected)
