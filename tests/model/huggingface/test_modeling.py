"""An exported checkpoint is a folder that transformers loads, and its model is ours."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import thoughtbubbles
from thoughtbubbles.model import Rule, Thoughtbubbles, Tokenizer, load_checkpoint, save_checkpoint
from thoughtbubbles.model.generate import generate
from thoughtbubbles.model.huggingface.export import export_checkpoint
from thoughtbubbles.model.huggingface.source import modeling_source

RULES = ("causal", "dynamic", "fixed", "blockwise")
IDS = torch.tensor([[5, 250, 17, 17, 17, 99, 4, 3, 200, 100, 50, 25], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 255, 254]])


@pytest.fixture
def exported(tmp_path: Path, model: Thoughtbubbles, tokenizer: Tokenizer) -> Path:
    save_checkpoint(tmp_path / "ours", model, tokenizer, {"made": "here"}, torch.bfloat16, chat_template="{{ 1 }}")
    assert thoughtbubbles.main(["export", str(tmp_path / "ours"), str(tmp_path / "exported")]) == 0
    return tmp_path / "exported"


@pytest.fixture
def transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package, which copies the code that it runs into a folder of the test."""
    package = pytest.importorskip("transformers", reason="transformers (in the extra `test`) is not installed")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return package


@pytest.fixture
def loaded(transformers: ModuleType, exported: Path) -> nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True, dtype=torch.float32)


def test_an_export_is_still_a_checkpoint(exported: Path) -> None:
    ours, again = (load_checkpoint(exported.parent / name) for name in ("ours", "exported"))
    assert again.model.config == ours.model.config
    assert (again.provenance, again.chat_template) == (ours.provenance, ours.chat_template)
    for name, tensor in ours.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)
    export_checkpoint(exported, exported.parent / "twice")
    for file in exported.iterdir():
        assert (exported.parent / "twice" / file.name).read_bytes() == file.read_bytes()


def test_a_model_of_others_is_refused(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="and nothing else"):
        load_checkpoint(exported)


def test_the_source_needs_nothing_of_ours() -> None:
    source = modeling_source()
    assert "import thoughtbubbles" not in source
    assert "from thoughtbubbles" not in source


def test_the_source_runs_without_our_package(exported: Path) -> None:
    pytest.importorskip("transformers", reason="transformers (in the extra `test`) is not installed")
    script = (
        "import sys; sys.modules['thoughtbubbles'] = None; import modeling_thoughtbubbles as m;"
        "print(m.ThoughtbubblesForCausalLM.__name__)"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=exported, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "ThoughtbubblesForCausalLM", ran.stderr


@pytest.mark.parametrize("ratio", [None, 1.5])
@pytest.mark.parametrize("rule", RULES)
def test_logits_are_equal_under_every_rule(loaded: nn.Module, exported: Path, rule: Rule, ratio: float | None) -> None:
    expected = load_checkpoint(exported).model(IDS, rule=rule, ratio=ratio)
    torch.testing.assert_close(loaded(IDS, rule=rule, ratio=ratio).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(loaded: nn.Module, side: str) -> None:
    mask = torch.ones_like(IDS)
    row = slice(0, 5) if side == "left" else slice(7, None)
    mask[1, row] = 0
    padded = loaded(IDS, attention_mask=mask).logits
    alone = loaded(IDS[1:][:, mask[1] == 1]).logits
    torch.testing.assert_close(padded[1:][:, mask[1] == 1], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(padded[:1], loaded(IDS[:1]).logits, rtol=0, atol=1e-5)


def test_the_loss_is_that_of_the_next_token(loaded: nn.Module) -> None:
    found = loaded(IDS, labels=IDS)
    expected = torch.nn.functional.cross_entropy(found.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(found.loss, expected)


@pytest.mark.parametrize("rule", RULES)
def test_greedy_generation_is_ours(loaded: nn.Module, exported: Path, rule: Rule) -> None:
    ours = load_checkpoint(exported)
    found = loaded.generate(IDS[:1], max_new_tokens=12, do_sample=False, rule=rule)
    expected = generate(
        ours.model, IDS[0].tolist(), 12, temperature=0, rule=rule, end_of_text=ours.tokenizer.end_of_text
    )
    assert found[0, IDS.shape[1] :].tolist() == expected


def test_a_batch_of_several_lengths_generates_as_each_alone(loaded: nn.Module) -> None:
    mask = torch.ones_like(IDS)
    mask[1, :5] = 0
    both = loaded.generate(IDS, attention_mask=mask, max_new_tokens=6, do_sample=False)
    for row, start in ((0, 0), (1, 5)):
        alone = loaded.generate(IDS[row : row + 1, start:], max_new_tokens=6, do_sample=False)
        assert both[row, IDS.shape[1] :].tolist() == alone[0, IDS.shape[1] - start :].tolist()


def test_saving_gives_the_same_tensors_and_config(loaded: nn.Module, exported: Path, tmp_path: Path) -> None:
    loaded.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.tiktoken").write_bytes((exported / "tokenizer.tiktoken").read_bytes())
    again, ours = load_checkpoint(tmp_path / "saved"), load_checkpoint(exported)
    assert again.model.config == ours.model.config
    assert again.provenance == ours.provenance
    for name, tensor in ours.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)


def test_the_tokenizer_loads(transformers: ModuleType, exported: Path, tokenizer: Tokenizer) -> None:
    found = transformers.AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    assert found.encode("The river 東京") == tokenizer.encode("The river 東京")
    assert found.eos_token_id == tokenizer.end_of_text
    assert found.chat_template == "{{ 1 }}"
    assert found.decode(found.encode(" a , b .")) == " a , b ."
