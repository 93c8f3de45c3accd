"""Whatever a command is given, what it cannot do is one line on standard error and exit status 2."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import thoughtbubbles
from tests.training.harness import HELD_OUT, MODEL, TEXTS, VOCAB, write_json_lines
from thoughtbubbles.model import Thoughtbubbles, Tokenizer, save_checkpoint
from thoughtbubbles.model.memory import lack_of_memory, require_memory
from thoughtbubbles.training.data.prepare import prepare

Refused = Callable[[Sequence[object]], str]
DEEP = "[" * 500 + "]" * 500


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that is to be refused: its one line."""

    def run(arguments: Sequence[object]) -> str:
        capfd.readouterr()
        assert thoughtbubbles.main([str(argument) for argument in arguments]) == 2
        shown = capfd.readouterr()
        assert shown.out == ""
        assert re.fullmatch(r"thoughtbubbles: error: [^\n]+\n", shown.err), shown.err
        assert len(shown.err) < 600
        return shown.err

    return run


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)} | {b"th": 256}, "ranks")
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    save_checkpoint(folder, Thoughtbubbles(replace(MODEL, vocab_size=tokenizer.vocab_size)), tokenizer, {"by": "test"})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    train, val = (write_json_lines(folder / f"{n}.jsonl", t) for n, t in (("train", TEXTS), ("val", HELD_OUT)))
    prepare([train], [val], folder / "prepared", VOCAB)
    return folder / "prepared"


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """To damage."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--cache-bytes", 999_999_999_999_999], "cache_bytes 999999999999999 needs .* this machine has"),
        (["--max-batch-size", 1_000_000_000], "max_batch_size must be from 1 to 4096, not 1000000000"),
        (["--max-batch-size", 0], "max_batch_size must be from 1 to 4096, not 0"),
        (["--threads", 100_000], "threads must be from 1 to 1024, not 100000"),
        (["--max-model-len", 10**12], "cache_bytes must be at least|max_model_len"),
    ],
)
def test_serve_refuses_what_no_machine_has(saved: Path, refused: Refused, flags: list[object], reason: str) -> None:
    assert re.search(reason, refused(["serve", "--checkpoint", saved, "--port", 0, *flags]))


SMALL = ["--recipe", "tiny", "--vocab-size", VOCAB, "--block-size", 16, "--max-block-size", 24, "--fork-layers", 1]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--n-embd", 10**9], "n_embd must be a whole number from 1 to 131072, not 1000000000"),
        (["--n-layer", 10**9], "n_layer must be a whole number from 1 to 1024, not 1000000000"),
        (["--n-head", 10**9], "n_head must be a whole number from 1 to"),
        (["--n-embd", 131_072], "a model of [0-9,]+ parameters needs [0-9,]+ bytes of memory, and this machine has"),
        (["--block-size", 10**9], "block_size must be a whole number from 1 to"),
        (["--n-embd", "9" * 4000], r"n_embd must be a whole number|argument"),
        (["--batch-size", 10**9], "batch_size must be at most 1048576, not 1000000000"),
        (["--seed", 10**30], "seed must be from 0 to"),
        (["--seed", -1], "seed must be from 0 to"),
        (["--threads", 100_000], "threads must be from 1 to 1024, not 100000"),
        (["--device", "toaster"], "device toaster cannot be used"),
        (["--device", "meta"], "device meta cannot be used"),
    ],
)
def test_train_refuses_what_no_machine_has(
    data: Path, tmp_path: Path, refused: Refused, flags: list[object], reason: str
) -> None:
    message = refused(["train", *SMALL, "--device", "cpu", "--data", data, "--out", tmp_path / "run", *flags])
    assert re.search(reason, message)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--workers", 10**9], "workers must be from 1 to"),
        (["--vocab-size", 10**30], "vocab_size must be at least 258"),
    ],
)
def test_prepare_refuses_what_no_machine_has(
    data: Path, tmp_path: Path, refused: Refused, flags: list[object], reason: str
) -> None:
    texts = ["--train", data.parent / "train.jsonl", "--val", data.parent / "val.jsonl", "--out", tmp_path / "out"]
    assert reason in refused(["prepare", *texts, "--vocab-size", 300, *flags])


def put(*names: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        inner = config
        for name in names[:-1]:
            inner = inner[name]
        inner[names[-1]] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def fifo(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def index_of_shards(content: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return change


@pytest.mark.parametrize(
    "damage",
    [
        write("config.json", DEEP), write("config.json", "[" * 100_000), write("config.json", "[]"),
        write("config.json", '{"a":' * 500 + "1" + "}" * 500), write("config.json", "9" * 5000),
        *(put("model", value=value) for value in ([], [[]], None, 1, {})),
        *(put("tokenizer", value=value) for value in ([], {"file": {}}, None)),
        *(put("provenance", value=value) for value in ([], "none", json.loads('{"a":' * 500 + "1" + "}" * 500))),
        *(put("format_version", value=value) for value in ([], {}, [1], 10**400)),
        *(put("model", name, value=value) for name in ("n_embd", "n_layer", "n_head", "block_size", "max_block_size",
                                                       "vocab_size", "fork_layers", "averaging", "bias", "copies")
          for value in ([[1]], {"a": 1}, 10**9, 10**400, None, "x", 1e300)),
        *(index_of_shards(content) for content in ("[]", DEEP, '{"weight_map": []}', '{"weight_map": {"a": [1]}}',
                                                   '{"weight_map": {"a": "../../etc/passwd"}}')),
        *(fifo(name) for name in ("config.json", "tokenizer.tiktoken", "model.safetensors", "chat_template.jinja")),
        write("tokenizer.tiktoken", "9" * 5000), write("tokenizer.tiktoken", f"YQ== {'9' * 5000}"),
        write("model.safetensors", ""), write("model.safetensors", "\xff" * 99),
    ],
)  # fmt: skip
def test_a_checkpoint_that_is_none_is_refused_in_one_line(
    checkpoint: Path, refused: Refused, damage: Callable[[Path], None]
) -> None:
    damage(checkpoint)
    assert "checkpoint" in refused(["inspect", checkpoint])
    assert "checkpoint" in refused(["generate", "x", "--checkpoint", checkpoint, "--max-tokens", "1"])


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "index.json", "tokenizer.tiktoken"])
def test_train_does_not_wait_for_a_fifo(data: Path, tmp_path: Path, refused: Refused, name: str) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "prepared"))
    fifo(name)(folder)
    message = refused(["train", *SMALL, "--device", "cpu", "--data", folder, "--out", tmp_path / "run"])
    assert name in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz"])
def test_texts_do_not_wait_for_a_fifo(saved: Path, tmp_path: Path, refused: Refused, name: str) -> None:
    fifo(name)(tmp_path)
    assert name in refused(["evaluate", saved, "--device", "cpu", "--data", tmp_path / name])
    assert name in refused(["prepare", "--train", tmp_path / name, "--vocab-size", 300, "--out", tmp_path / "out"])


@pytest.mark.parametrize("size", [0, -3])
def test_evaluate_refuses_a_batch_of_nothing(saved: Path, data: Path, refused: Refused, size: int) -> None:
    message = refused(["evaluate", saved, "--data", data.parent / "val.jsonl", "--device", "cpu", "--batch-size", size])
    assert f"batch_size must be at least 1, not {size}" in message


@pytest.mark.parametrize("ratio", ["1e300", "inf", "nan", "0.5"])
@pytest.mark.parametrize("command", ["evaluate", "analyse"])
def test_a_ratio_that_no_budget_has_is_refused_before_anything_is_printed(
    saved: Path, data: Path, refused: Refused, command: str, ratio: str
) -> None:
    if command == "analyse":
        pytest.importorskip("matplotlib", reason="figures need the extra `plots`")
    message = refused([command, saved, "--data", data.parent / "val.jsonl", "--device", "cpu", "--ratio", ratio])
    assert re.search(r"ratio must be from 1 to \d+, not ", message)


@pytest.mark.parametrize("flag", ["--config", "--api-keys-file"])
def test_serve_does_not_wait_for_a_fifo(saved: Path, tmp_path: Path, refused: Refused, flag: str) -> None:
    fifo("settings")(tmp_path)
    assert "settings is not a regular file" in refused(["serve", "--checkpoint", saved, flag, tmp_path / "settings"])


def test_what_a_shell_pipes_is_a_file_of_settings(saved: Path, tmp_path: Path) -> None:
    """bash's <(command) is a pipe too, but one with a writer."""
    line = f"{sys.executable} -m thoughtbubbles.server --config <(echo port = 99999)"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "python -m thoughtbubbles.server: error: port must be from 0 to 65535, not 99999\n",
    )


def test_lack_of_memory_is_reported_and_other_failures_are_not() -> None:
    import torch

    with pytest.raises(RuntimeError) as failure:
        torch.empty(1 << 60)
    assert "not enough memory: " in str(lack_of_memory(failure.value))
    assert lack_of_memory(MemoryError()) == "not enough memory: an allocation failed"
    assert lack_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried\nmore")) is not None
    assert lack_of_memory(RuntimeError("shapes do not match")) is None
    require_memory(1, "a byte")
    with pytest.raises(ValueError, match=r"^all needs 1,0{3}.* bytes of memory, and this machine has [\d,]+$"):
        require_memory(10**24, "all")
