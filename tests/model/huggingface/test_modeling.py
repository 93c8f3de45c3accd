"""An exported checkpoint is a folder that transformers loads, and its model is ours."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import thoughtbubbles
from thoughtbubbles.model import ModelConfig, Rule, Thoughtbubbles, Tokenizer, load_checkpoint, save_checkpoint
from thoughtbubbles.model.generate import generate
from thoughtbubbles.model.huggingface.export import export_checkpoint
from thoughtbubbles.model.huggingface.source import modeling_source

ROOT = Path(__file__).parents[3]
RULES = ("causal", "dynamic", "fixed", "blockwise")
TOKENS = [*(bytes([byte]) for byte in range(256)), b"th", b"the", b" t", b" the", b"\xf0\x9f"]
CONFIG = ModelConfig(
    vocab_size=264, block_size=16, max_block_size=32, n_layer=3, n_head=2, n_embd=16, fork_layers=(1, 2)
)
IDS = torch.tensor([[5, 250, 17, 17, 17, 99, 4, 3, 200, 100, 50, 25], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 255, 254]])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported checkpoint, beside the one that it was made of, which has a model card."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = Tokenizer({token: rank for rank, token in enumerate(TOKENS)}, "tokens")
    torch.manual_seed(1)
    save_checkpoint(
        folder / "ours", Thoughtbubbles(CONFIG), tokenizer, {"made": "here"}, torch.bfloat16, chat_template="{{ 1 }}"
    )
    (folder / "ours" / "README.md").write_text("a card")
    assert thoughtbubbles.main(["export", str(folder / "ours"), str(folder / "exported")]) == 0
    return folder / "exported"


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The package, which copies the code that it runs into a folder of the tests."""
    package = pytest.importorskip("transformers", reason="transformers (in the extra `test`) is not installed")
    modules = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
        patch.syspath_prepend(modules)
        yield package


@pytest.fixture(scope="module")
def loaded(transformers: ModuleType, exported: Path) -> nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True, dtype=torch.float32)


@pytest.fixture
def passes(loaded: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of tokens of each text that forward passes got, in order."""
    numbers: list[int] = []
    prepare = loaded.prepare_inputs_for_generation

    def spy(*args: object, **kwargs: object) -> dict[str, object]:
        inputs = prepare(*args, **kwargs)
        numbers.append(inputs["input_ids"].shape[1])
        return inputs

    monkeypatch.setattr(loaded, "prepare_inputs_for_generation", spy)
    return numbers


def test_an_export_is_still_a_checkpoint(exported: Path) -> None:
    ours, again = (load_checkpoint(exported.parent / name) for name in ("ours", "exported"))
    assert again.model.config == ours.model.config
    assert (again.provenance, again.chat_template) == (ours.provenance, ours.chat_template)
    for name, tensor in ours.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)


def test_an_export_brings_a_folder_up_to_date(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "twice")
    for name in ("tokenizer.json", "modeling_thoughtbubbles.py"):
        (folder / name).write_text("old")
    export_checkpoint(folder, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        file.name: file.read_bytes() for file in exported.iterdir()
    }
    assert (folder / "README.md").read_text() == "a card"


def test_a_model_of_others_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="and nothing else"):
        load_checkpoint(folder)


def test_the_source_needs_nothing_of_ours() -> None:
    source = modeling_source()
    assert "import thoughtbubbles" not in source
    assert "from thoughtbubbles" not in source


def test_the_shipped_checkpoint_has_the_model_of_today() -> None:
    """`thoughtbubbles export checkpoints/thoughtbubbles-11m checkpoints/thoughtbubbles-11m` writes it anew."""
    shipped = ROOT / "checkpoints" / "thoughtbubbles-11m" / "modeling_thoughtbubbles.py"
    assert shipped.read_text(encoding="utf-8") == modeling_source()


def test_the_source_runs_without_our_package(
    transformers: ModuleType, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "thoughtbubbles"]:
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("alone", exported / "modeling_thoughtbubbles.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "alone", module)
    spec.loader.exec_module(module)
    model = module.ThoughtbubblesForCausalLM(module.ThoughtbubblesConfig(model=CONFIG.to_dict()))
    assert model(IDS).logits.shape == (2, 12, 264)


@pytest.mark.parametrize("ratio", [None, 1.5])
@pytest.mark.parametrize("rule", RULES)
def test_logits_are_equal_under_every_rule(loaded: nn.Module, exported: Path, rule: Rule, ratio: float | None) -> None:
    expected = load_checkpoint(exported).model(IDS, rule=rule, ratio=ratio)
    torch.testing.assert_close(loaded(IDS, rule=rule, ratio=ratio).logits, expected, rtol=0, atol=1e-5)


def test_a_rule_is_chosen_once_for_all_passes(transformers: ModuleType, exported: Path) -> None:
    """For what passes no arguments of ours to the model."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        exported, trust_remote_code=True, dtype=torch.float32, rule="fixed", ratio=1.5
    )
    expected = load_checkpoint(exported).model(IDS, rule="fixed", ratio=1.5)
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(loaded: nn.Module, side: str) -> None:
    mask = torch.ones_like(IDS)
    row = slice(0, 5) if side == "left" else slice(7, None)
    mask[1, row] = 0
    padded = loaded(IDS, attention_mask=mask).logits
    alone = loaded(IDS[1:][:, mask[1] == 1]).logits
    torch.testing.assert_close(padded[1:][:, mask[1] == 1], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(padded[:1], loaded(IDS[:1]).logits, rtol=0, atol=1e-5)


def test_loss_and_gradients_are_the_models(loaded: nn.Module, exported: Path) -> None:
    ours = load_checkpoint(exported).model
    loss = torch.nn.functional.cross_entropy(ours(IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    expected = torch.autograd.grad(loss, list(ours.parameters()))
    found = loaded(IDS, labels=IDS)
    torch.testing.assert_close(found.loss, loss)
    weights = [loaded.get_parameter(name) for name, _ in ours.named_parameters()]
    for gradient, other in zip(torch.autograd.grad(found.loss, weights), expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_half_precision_is_ours(transformers: ModuleType, exported: Path) -> None:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded(IDS).logits, load_checkpoint(exported, dtype=torch.bfloat16).model(IDS))


@pytest.mark.parametrize("rule", RULES)
def test_greedy_generation_is_ours(loaded: nn.Module, exported: Path, rule: Rule, passes: list[int]) -> None:
    ours = load_checkpoint(exported)
    found = loaded.generate(IDS[:1], max_new_tokens=12, do_sample=False, rule=rule)
    expected = generate(
        ours.model, IDS[0].tolist(), 12, temperature=0, rule=rule, end_of_text=ours.tokenizer.end_of_text
    )
    assert found[0, IDS.shape[1] :].tolist() == expected
    assert passes == ([12] + [1] * 11 if rule == "causal" else [*range(12, 24)])


def test_a_batch_of_several_lengths_generates_as_each_alone(loaded: nn.Module) -> None:
    mask = torch.ones_like(IDS)
    mask[1, :5] = 0
    both = loaded.generate(IDS, attention_mask=mask, max_new_tokens=6, do_sample=False)
    for row, start in ((0, 0), (1, 5)):
        alone = loaded.generate(IDS[row : row + 1, start:], max_new_tokens=6, do_sample=False, use_cache=False)
        assert both[row, IDS.shape[1] :].tolist() == alone[0, IDS.shape[1] - start :].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "ratio": 1.5},
        {"do_sample": True, "num_return_sequences": 3},
    ],
    ids=str,
)
def test_beams_and_samples_are_those_without_a_cache(loaded: nn.Module, settings: dict[str, object]) -> None:
    mask = torch.ones_like(IDS)
    mask[1, :5] = 0
    found = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        found.append(loaded.generate(IDS, attention_mask=mask, max_new_tokens=8, use_cache=use_cache, **settings))
    assert torch.equal(*found)


@pytest.mark.parametrize("masked", [True, False])
def test_a_text_is_continued_from_its_cache(loaded: nn.Module, masked: bool, passes: list[int]) -> None:
    first = loaded.generate(IDS[:1], max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    text = torch.cat((first.sequences, IDS[1:, :5]), dim=1)
    mask = {"attention_mask": torch.ones_like(text)} if masked else {}
    passes.clear()
    found = loaded.generate(text, **mask, cache=first.cache, max_new_tokens=4, do_sample=False)
    assert passes == [6, 1, 1, 1]
    assert torch.equal(found, loaded.generate(text, max_new_tokens=4, do_sample=False))


def test_a_prompt_is_computed_in_chunks(loaded: nn.Module, passes: list[int]) -> None:
    cache = type(loaded(IDS).cache)()
    found = loaded.generate(IDS, cache=cache, prefill_chunk_size=5, max_new_tokens=3, do_sample=False)
    assert passes == [5, 5, 2, 1, 1]
    assert torch.equal(found, loaded.generate(IDS, max_new_tokens=3, do_sample=False))


def test_a_cache_that_does_not_fit_is_refused(transformers: ModuleType, loaded: nn.Module) -> None:
    cache = loaded(IDS).cache
    for mistake, settings in {
        "a batch of 2 texts, input_ids has 1": {"input_ids": IDS[:1], "cache": cache},
        "ratio must be that of the cached tokens, 2,": {"input_ids": IDS, "cache": cache, "ratio": 1.5},
        "a cache is for the rule causal, not fixed": {"input_ids": IDS, "cache": cache, "rule": "fixed"},
        "must be a ThoughtbubblesCache, not a DynamicCache": {"input_ids": IDS, "cache": transformers.DynamicCache()},
        r"attention_mask must have the shape \[2, 24\], not \[2, 12\]": {
            "input_ids": IDS, "cache": cache, "attention_mask": torch.ones_like(IDS)
        },
        "a row of attention_mask has no token": {"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)},
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=mistake):
            loaded(**settings)
    with pytest.raises(ValueError, match="the cache has 12 tokens, input_ids has 3: give the whole text"):
        loaded.generate(IDS[:, :3], cache=cache, max_new_tokens=1)
    with pytest.raises(ValueError, match="assisted generation is not supported"):
        loaded.generate(IDS[:1], prompt_lookup_num_tokens=2, max_new_tokens=4)
    with pytest.raises(ValueError, match="cannot be resized"):
        loaded.resize_token_embeddings(300)


def test_a_saved_model_and_tokenizer_are_a_checkpoint(
    transformers: ModuleType, loaded: nn.Module, exported: Path, tmp_path: Path
) -> None:
    loaded.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"tokenizer\.tiktoken: no such file"):
        load_checkpoint(tmp_path / "saved")
    transformers.AutoTokenizer.from_pretrained(exported, trust_remote_code=True).save_pretrained(tmp_path / "saved")
    again, ours = load_checkpoint(tmp_path / "saved"), load_checkpoint(exported)
    assert again.model.config == ours.model.config
    assert (again.provenance, again.chat_template) == (ours.provenance, ours.chat_template)
    assert again.tokenizer.encode("The river 東京") == ours.tokenizer.encode("The river 東京")
    for name, tensor in ours.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)
    assert (tmp_path / "saved" / "modeling_thoughtbubbles.py").read_text() == modeling_source()


def test_the_tokenizer_loads(transformers: ModuleType, exported: Path) -> None:
    """Without remote code too, which tools that only count tokens do not run."""
    tokenizer = load_checkpoint(exported).tokenizer
    for trust in (True, False):
        found = transformers.AutoTokenizer.from_pretrained(exported, trust_remote_code=trust)
        assert found.encode("The river 東京") == tokenizer.encode("The river 東京")
        assert found.eos_token_id == tokenizer.end_of_text
        assert found.chat_template == "{{ 1 }}"
        assert found.decode(found.encode(" a , b .")) == " a , b ."


def test_the_pipeline_continues_texts(transformers: ModuleType, loaded: nn.Module, exported: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    write = transformers.pipeline("text-generation", model=loaded, tokenizer=tokenizer)
    found = write(["the", "the river"], max_new_tokens=6, do_sample=False, batch_size=2, return_full_text=False)
    model, ours = thoughtbubbles.load(exported)
    for text, (answer,) in zip(["the", "the river"], found, strict=True):
        made = generate(model, ours.encode(text), 6, temperature=0, end_of_text=ours.end_of_text)
        assert answer["generated_text"] == ours.decode(made).removesuffix("<|endoftext|>")


def test_importing_hf_needs_no_remote_code(transformers: ModuleType, exported: Path, tmp_path: Path) -> None:
    script = f"""
import torch, transformers, thoughtbubbles.hf
from thoughtbubbles.model import load_checkpoint
folder = {str(exported)!r}
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
assert type(model) is thoughtbubbles.hf.ThoughtbubblesForCausalLM
ids = transformers.AutoTokenizer.from_pretrained(folder)("the river", return_tensors="pt").input_ids
assert torch.equal(model(ids, use_cache=False).logits, load_checkpoint(folder).model(ids))
model.save_pretrained({str(tmp_path)!r})
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "modeling_thoughtbubbles.py").read_text() == modeling_source()


def test_importing_hf_makes_no_source(transformers: ModuleType) -> None:
    """Only `save_pretrained` needs it, and it is made from all files of `model/`."""
    script = """
from thoughtbubbles.model.huggingface import source
source.modeling_source = None
import thoughtbubbles.hf
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_without_transformers_the_import_says_what_to_install() -> None:
    script = "import sys; sys.modules['transformers'] = None; import thoughtbubbles.hf"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "thoughtbubbles.hf needs transformers: pip install 'transformers>=5'" in ran.stderr
