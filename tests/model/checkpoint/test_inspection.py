"""What `thoughtbubbles inspect` prints of a checkpoint, and what it refuses."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import thoughtbubbles
from thoughtbubbles.model import CheckpointError, Thoughtbubbles, Tokenizer, save_checkpoint, shipped_checkpoint
from thoughtbubbles.model.checkpoint.inspection import inspect_checkpoint, page

PROVENANCE = {"step": 4, "evaluation": {"packed": {"perplexity": 24.958}}, "note": "red \x1b[31m\nalert"}


@pytest.fixture
def folder(tmp_path: Path, model: Thoughtbubbles, tokenizer: Tokenizer) -> Path:
    save_checkpoint(tmp_path / "small", model, tokenizer, PROVENANCE, torch.bfloat16, chat_template="a: {{ messages }}")
    return tmp_path / "small"


def test_the_facts_are_those_of_the_model(folder: Path, model: Thoughtbubbles) -> None:
    facts = inspect_checkpoint(folder)
    state = model.state_dict()
    tensors = {tensor["name"]: tensor for tensor in facts["weights"]["tensors"]}
    assert {name: tensor["shape"] for name, tensor in tensors.items()} == {n: list(t.shape) for n, t in state.items()}
    assert sum(tensor["bytes"] for tensor in tensors.values()) == facts["weights"]["bytes"]
    assert facts["weights"]["bytes"] == 2 * sum(tensor.numel() for tensor in state.values())
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["model"] == model.config.to_dict()
    assert facts["budget"] == {"block_size": 16, "max_block_size": 32, "ratio": 2.0, "max_ratio": 2}
    assert facts["tokenizer"]["vocab_size"] == 262
    assert (facts["chat_template"], facts["provenance"]) == ("a: {{ messages }}", PROVENANCE)


def test_shards_are_told_one_by_one(tmp_path: Path, model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    save_checkpoint(tmp_path / "shards", model, tokenizer, {}, shard_bytes=20_000)
    weights = inspect_checkpoint(tmp_path / "shards")["weights"]
    assert len(weights["files"]) > 1
    headers = sum(8 + int.from_bytes((tmp_path / "shards" / f).read_bytes()[:8], "little") for f in weights["files"])
    on_disk = sum((tmp_path / "shards" / file).stat().st_size for file in weights["files"])
    assert weights["bytes"] == on_disk - headers


def test_the_page_and_the_json_tell_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert thoughtbubbles.main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == inspect_checkpoint(folder)
    assert thoughtbubbles.main(["inspect", str(folder)]) == 0
    printed = capsys.readouterr().out
    for line in ("fork layers  1", "κ          32 streams", "perplexity  24.958", "2 × [48, 16], 3,072 bytes", "BF16"):
        assert line in printed
    assert r'"red \u001b[31m\nalert"' in printed, "a checkpoint of somebody else's does not steer the terminal"


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"fork_layers": (), "loops": 3}, ("loops        3", "fork layers  none\n")),
        ({"fork_layers": (), "copies": 3, "averaging": "rightmost"}, ("copies       3", "fork layers  none\n")),
        ({"fork_layers": ()}, ("fork layers  none: a regular transformer\n",)),
        ({"score_bias": False, "value_attenuation": False}, ("score_bias         false", "value_attenuation  false")),
        ({"residual_attenuation": False}, ("residual_attenuation  false",)),
        ({"select_by": "random"}, ("select_by    random",)),
        ({"initial_keep_logit": 4.0}, ("initial_keep_logit  4.0",)),
    ],
)
def test_the_page_has_every_setting_that_makes_it_another_model(
    settings: dict[str, Any], shown: tuple[str, ...], model: Thoughtbubbles, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    other = Thoughtbubbles(replace(model.config, **settings))
    save_checkpoint(tmp_path / "other", other, tokenizer, {})
    lines = page(inspect_checkpoint(tmp_path / "other"))
    assert [each for each in shown if each not in lines] == []


def test_the_shipped_checkpoint_is_the_one_of_its_card() -> None:
    facts = inspect_checkpoint(shipped_checkpoint())
    assert round(facts["parameters"], -5) == 11_600_000
    assert facts["provenance"]["evaluation"]["packed"]["perplexity"] == 24.958


def test_what_is_torn_or_foreign_is_refused_with_the_reason(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"small: .*not fully covered"):
        inspect_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        inspect_checkpoint(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    assert thoughtbubbles.main(["inspect", str(folder)]) == 2
    assert "is not a checkpoint's: it has no format_version" in capsys.readouterr().err
