"""The shipped checkpoint is what export writes, and transformers generates from it what the engine does."""

from pathlib import Path

import pytest
import torch

from thoughtbubbles.engine import Engine, SamplingParams
from thoughtbubbles.model import load_checkpoint, shipped_checkpoint
from thoughtbubbles.model.huggingface.export import export_checkpoint

PROMPTS = ["The river", "Emma had not yet decided whether", "def main():\n"]


def test_the_shipped_checkpoint_is_exported(tmp_path: Path) -> None:
    """If it is not, run `thoughtbubbles export CHECKPOINT CHECKPOINT` with its folder."""
    export_checkpoint(shipped_checkpoint(), tmp_path / "exported")
    expected = {file.name: file.read_bytes() for file in (tmp_path / "exported").iterdir()}
    found = {file.name: file.read_bytes() for file in shipped_checkpoint().iterdir()}
    assert sorted(found) == sorted(expected)
    assert not [name for name, content in expected.items() if found[name] != content], "export the checkpoint again"


def test_greedy_tokens_are_the_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers (in the extra `test`) is not installed")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = shipped_checkpoint()
    checkpoint = load_checkpoint(folder)
    engine = Engine(checkpoint.model, checkpoint.tokenizer)
    expected = engine.generate(PROMPTS, SamplingParams(max_tokens=16, temperature=0))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    found = model.generate(**inputs, max_new_tokens=16, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert [ids.tolist() for ids in found] == [list(each.token_ids) for each in expected]
