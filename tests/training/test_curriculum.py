"""The paper's curriculum: sets laid out as they were published, prepared, and learned phase after phase."""

from pathlib import Path

import pytest

from tests.training.harness import TEXTS
from tests.training.test_published import CASES, datasets, repository
from thoughtbubbles.model import Tokenizer, load_checkpoint
from thoughtbubbles.training.__main__ import main
from thoughtbubbles.training.data.mixture import read_mixture
from thoughtbubbles.training.recipes import MIXTURES, PHASES

SMALL = [
    "--vocab-size", "257", "--block-size", "32", "--max-block-size", "64", "--n-layer", "2", "--n-head", "2",
    "--n-embd", "16", "--fork-layers", "1", "--batch-size", "4", "--accumulation", "1", "--steps", "2",
    "--warmup-steps", "0",
    "--precision", "float32", "--no-compile", "--parallelism", "ddp", "--device", "cpu", "--threads", "1",
]  # fmt: skip


def shares(phase: str) -> dict[str, tuple[float, str]]:
    """Each set's weight and form."""
    return {name: (each.weight, each.form) for name, each in read_mixture(MIXTURES / f"{phase}.toml").items()}


def test_mixtures_are_the_papers() -> None:
    assert shares("pretrain") == {"fineweb": (0.7, "packed"), "pes2o": (0.3, "packed")}
    assert shares("finetune") == {"gsm8k-aug": (1, "padded")}
    midtrain = shares("midtrain")
    assert sum(weight for weight, _ in midtrain.values()) == 1
    assert {name for name, (_, form) in midtrain.items() if form == "packed"} == {"fineweb", "pes2o"}
    assert midtrain["gsm8k-aug"] == (0.4, "padded")
    assert {path.stem for path in MIXTURES.iterdir()} == PHASES.keys()


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which `prepare` made each set that a phase has."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    Tokenizer({bytes([b]): b for b in range(256)}, "bytes").save(tmp_path / "bytes.tiktoken")
    for name, files, _ in CASES:
        copy = repository(tmp_path / name, name, files, copies=24)
        if name == "fineweb":  # of which a share is held out, by the text
            datasets.Dataset.from_dict({"text": TEXTS}).to_parquet(copy / next(iter(files)))
        command = ["prepare", name, "--from", str(copy), "--tokenizer", str(tmp_path / "bytes.tiktoken")]
        if name != "openwebtext":
            assert main([*command, "--val-share", "0.2", "--workers", "1", "--out", str(tmp_path / "sets" / name)]) == 0
    return tmp_path / "sets"


def test_each_phase_goes_on_from_the_one_before(sets: Path, tmp_path: Path) -> None:
    start: list[str] = []
    for phase in PHASES:
        out = tmp_path / "runs" / phase
        command = ["train", "--recipe", "1.9b", "--phase", phase, "--sets", str(sets), "--out", str(out), *SMALL]
        assert main([*command, *start]) == 0
        start = ["--start", str(out / "checkpoint")]
        told = load_checkpoint(out / "checkpoint").provenance
        assert told["data"]["weights"].keys() == shares(phase).keys()
    assert told["start"] == "checkpoint"


def test_a_set_that_is_not_prepared_is_named(sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sets / "pes2o").rename(sets / "elsewhere")
    assert main(["train", "--recipe", "1.9b", "--sets", str(sets), "--out", str(tmp_path / "run"), *SMALL]) == 2
    assert "pes2o has no index.json" in capsys.readouterr().err
