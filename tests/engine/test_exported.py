"""An exported checkpoint is served, and transformers generates what the engine does."""

from pathlib import Path

import pytest
import torch

from thoughtbubbles.engine import Engine, SamplingParams
from thoughtbubbles.model import load_checkpoint, shipped_checkpoint
from thoughtbubbles.model.huggingface.export import export_checkpoint

PROMPTS = ["The river", "Emma had not yet decided whether", "def main():\n"]


def test_greedy_tokens_are_the_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers (in the extra `test`) is not installed")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    export_checkpoint(shipped_checkpoint(), tmp_path / "exported")
    checkpoint = load_checkpoint(tmp_path / "exported")
    engine = Engine(checkpoint.model, checkpoint.tokenizer)
    expected = engine.generate(PROMPTS, SamplingParams(max_tokens=16, temperature=0))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "exported", trust_remote_code=True, dtype=torch.float32
    )
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    found = model.generate(**inputs, max_new_tokens=16, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert [ids.tolist() for ids in found] == [list(each.token_ids) for each in expected]
