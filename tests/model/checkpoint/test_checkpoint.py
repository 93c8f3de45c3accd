import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import thoughtbubbles
from thoughtbubbles.model import (
    Checkpoint,
    CheckpointError,
    Thoughtbubbles,
    Tokenizer,
    load_checkpoint,
    save_checkpoint,
)
from thoughtbubbles.model.files import atomic

PROVENANCE = {"command": "train", "steps": 3}
IDS = torch.tensor([[5, 250, 17, 17, 17, 99]])


@pytest.fixture
def folder(tmp_path: Path, model: Thoughtbubbles, tokenizer: Tokenizer) -> Path:
    save_checkpoint(tmp_path / "saved", model, tokenizer, PROVENANCE)
    return tmp_path / "saved"


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_what_was_saved_is_loaded(folder: Path, model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.tiktoken"]
    loaded = load_checkpoint(folder)
    assert loaded.provenance == PROVENANCE
    assert loaded.model.config == model.config
    assert not loaded.model.training
    assert loaded.tokenizer.encode("the the") == tokenizer.encode("the the")
    assert torch.equal(loaded.model(IDS), model(IDS))
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_checkpoint_from_before_a_setting_has_its_default(folder: Path, model: Thoughtbubbles) -> None:
    def forget(config: dict[str, Any]) -> None:
        del config["model"]["select_by"], config["model"]["initial_keep_logit"]

    edit_config(folder, forget)
    assert load_checkpoint(folder).model.config == model.config


def test_stored_and_loaded_dtypes_are_the_callers(tmp_path: Path, model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    save_checkpoint(tmp_path / "bf16", model, tokenizer, {}, torch.bfloat16)
    stored = load_file(tmp_path / "bf16" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    loaded = load_checkpoint(tmp_path / "bf16").model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor.bfloat16().float())
    half = load_checkpoint(tmp_path / "bf16", dtype=torch.float16).model
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}


def test_large_weights_are_sharded_with_an_index(tmp_path: Path, model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    save_checkpoint(tmp_path / "sharded", model, tokenizer, {}, shard_bytes=10_000)
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    shards = sorted((tmp_path / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    held = {name: shard.name for shard in shards for name in load_file(shard)}
    assert index["weight_map"] == held
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
    # Only a tensor that is larger than a shard by itself may exceed the limit.
    for shard in shards:
        tensors = load_file(shard).values()
        assert len(tensors) == 1 or 4 * sum(tensor.numel() for tensor in tensors) <= 10_000
    assert torch.equal(load_checkpoint(tmp_path / "sharded").model(IDS), model(IDS))


def test_whoever_may_read_the_settings_may_read_the_weights(folder: Path) -> None:
    assert {file.stat().st_mode for file in folder.iterdir()} == {(folder / "config.json").stat().st_mode}


def test_a_missing_shard_is_refused(tmp_path: Path, model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    save_checkpoint(tmp_path / "sharded", model, tokenizer, {}, shard_bytes=10_000)
    next((tmp_path / "sharded").glob("model-00002-*")).unlink()
    with pytest.raises(CheckpointError, match="model-00002"):
        load_checkpoint(tmp_path / "sharded")


TEMPLATE = "{% for m in messages %}\r\n{{ m.content }} 🫧{% endfor %}\n"


def test_a_chat_template_is_a_file_of_the_folder(tmp_path: Path, model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    save_checkpoint(tmp_path / "chat", model, tokenizer, {}, chat_template=TEMPLATE)
    assert (tmp_path / "chat" / "chat_template.jinja").read_bytes() == TEMPLATE.encode()
    assert load_checkpoint(tmp_path / "chat").chat_template == TEMPLATE
    save_checkpoint(tmp_path / "chat", model, tokenizer, {})
    assert load_checkpoint(tmp_path / "chat").chat_template is None


@pytest.mark.parametrize("template", [b"{% for %}", b"\xff"])
def test_a_chat_template_that_does_not_parse_is_refused(folder: Path, template: bytes) -> None:
    (folder / "chat_template.jinja").write_bytes(template)
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        load_checkpoint(folder)


def test_a_chat_template_that_does_not_parse_is_not_saved(
    tmp_path: Path, model: Thoughtbubbles, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ValueError, match=r"chat_template\.jinja is not a template: line 1"):
        save_checkpoint(tmp_path / "chat", model, tokenizer, {}, chat_template="{% for %}")
    assert not (tmp_path / "chat").exists()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.tiktoken"])
def test_a_missing_file_is_refused(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(folder)


def test_a_callers_check_comes_before_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights")

    def check(found: Checkpoint) -> None:
        assert found.model.transformer.wte.weight.is_meta
        raise ValueError(f"{found.name} is not wanted")

    with pytest.raises(CheckpointError, match=f"{folder}: {folder.name} is not wanted"):
        load_checkpoint(folder, check=check)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64, "float16"])
def test_a_dtype_that_no_model_computes_in_is_refused(folder: Path, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"dtype must be float64, float32, bfloat16 or float16, not .*{dtype}"):
        load_checkpoint(folder, dtype=dtype)
    assert load_checkpoint(folder, dtype=torch.float64).model.transformer.wte.weight.dtype == torch.float64


def test_a_device_that_is_not_here_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="device cuda:99 cannot be used: "):
        load_checkpoint(folder, device="cuda:99")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda c: c.update(format_version=2), "format version 2 is not known"),
        (lambda c: c.pop("format_version"), "no format_version"),
        (lambda c: c.update(optimizer={}), "nothing else"),
        (lambda c: c.pop("provenance"), "nothing else"),
        (lambda c: c.update(model=[]), "nothing else"),
        (lambda c: c["model"].update(n_expert=8), "unknown model settings: n_expert"),
        (lambda c: c["model"].update(n_head=3), "n_embd must be"),
        (lambda c: c["model"].pop("n_layer"), "n_layer"),
        (lambda c: c["tokenizer"].update(vocab_size=261), "not the tokenizer that config.json describes"),
        (lambda c: c["tokenizer"].update(pattern="cl100k"), "not the tokenizer that config.json describes"),
        (lambda c: c["model"].update(vocab_size=261), "262 tokens and the model a vocab_size of 261"),
        (lambda c: c["model"].update(vocab_size=262 + 128), "up to 127 more"),
        (lambda c: c["model"].update(fork_layers=[]), "do not belong to this model: transformer.h.1.fork"),
    ],
)
def test_a_wrong_config_is_refused(folder: Path, edit: Callable[[dict[str, Any]], Any], reason: str) -> None:
    edit_config(folder, edit)
    with pytest.raises(CheckpointError, match=reason) as refusal:
        load_checkpoint(folder)
    assert str(folder) in str(refusal.value)


NORM = "transformer.ln_f.weight"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda t: t.pop(NORM), f"tensors are missing: {NORM}$"),
        (lambda t: [t.pop(name) for name in list(t)[:5]], "tensors are missing: .*, .* and 2 more$"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(2)}), "do not belong to this model: lm_head.weight"),
        (lambda t: t.update({NORM: torch.zeros(17)}), rf"{NORM} has shape \[17\], where the model has \[16\]"),
        (lambda t: t.update({NORM: torch.zeros(16, dtype=torch.float16)}), "stored as F16, F32, not all as one"),
        (lambda t: t.update({name: tensor.double() for name, tensor in t.items()}), "stored as F64"),
    ],
)
def test_wrong_tensors_are_refused(folder: Path, edit: Callable[[dict[str, Tensor]], Any], reason: str) -> None:
    edit_weights(folder, edit)
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name_and_number(folder: Path, value: float) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors["transformer.wte.weight"].view(-1)[[0, 5, -1]] = value
        tensors["transformer.ln_f.weight"][1] = value

    edit_weights(folder, edit)
    reason = r"NaN or infinite: transformer\.ln_f\.weight \(1 of \d+\), transformer\.wte\.weight \(3 of \d+\)"
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(folder)
    with pytest.raises(CheckpointError, match=reason):
        thoughtbubbles.load(folder)


def test_many_tensors_that_are_not_finite_are_counted(folder: Path) -> None:
    edit_weights(folder, lambda tensors: [tensor.fill_(float("nan")) for tensor in tensors.values()])
    with pytest.raises(CheckpointError, match=r"([\w.]+ \((\d+) of \2\),? ){3}and \d+ more"):
        load_checkpoint(folder)


def test_weights_that_are_too_large_for_the_dtype_are_refused(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors["transformer.ln_f.weight"].fill_(1e5))
    assert load_checkpoint(folder).model.transformer.ln_f.weight[0] == 1e5
    with pytest.raises(CheckpointError, match=r"as float16.*transformer\.ln_f\.weight"):
        load_checkpoint(folder, dtype=torch.float16)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(folder: Path, keep: int) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:keep])
    with pytest.raises(CheckpointError, match=r"saved: "):
        load_checkpoint(folder)


def test_a_truncated_tokenizer_is_refused(folder: Path) -> None:
    ranks = (folder / "tokenizer.tiktoken").read_bytes()
    (folder / "tokenizer.tiktoken").write_bytes(ranks[: len(ranks) // 2].rsplit(b"\n", 1)[0])
    with pytest.raises(CheckpointError, match="not the tokenizer that config"):
        load_checkpoint(folder)


def test_a_pickle_in_place_of_the_weights_is_never_run(folder: Path) -> None:
    # A pickle that would raise KeyboardInterrupt if anything unpickled it.
    pickle = b"c__builtin__\nKeyboardInterrupt\n(tRc__builtin__\nexit\n(tR."
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 8) + pickle)
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)


def test_saving_replaces_a_checkpoint(folder: Path, model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    save_checkpoint(folder, model, tokenizer, {"steps": 4})
    assert load_checkpoint(folder).provenance == {"steps": 4}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["ranks.tiktoken", "saved"]


def test_saving_fills_an_empty_folder_but_replaces_no_other(
    tmp_path: Path, model: Thoughtbubbles, tokenizer: Tokenizer
) -> None:
    (tmp_path / "empty").mkdir()
    save_checkpoint(tmp_path / "empty", model, tokenizer, {})
    load_checkpoint(tmp_path / "empty")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    for theirs in (tmp_path / "theirs", tmp_path / "theirs" / "config.json"):
        with pytest.raises(ValueError, match="is not a checkpoint, so it is not replaced"):
            save_checkpoint(theirs, model, tokenizer, {})
    assert (tmp_path / "theirs" / "config.json").read_text() == "{}"


def test_saving_replaces_no_prepared_folder_and_no_clone(
    folder: Path, tmp_path: Path, model: Thoughtbubbles, tokenizer: Tokenizer
) -> None:
    """A prepared folder has a tokenizer too, and in a clone of a repository is its history."""
    (tmp_path / "prepared").mkdir()
    tokenizer.save(tmp_path / "prepared" / "tokenizer.tiktoken")
    (tmp_path / "prepared" / "train.bin").touch()
    with pytest.raises(ValueError, match="prepared exists and is not a checkpoint, so it is not replaced"):
        save_checkpoint(tmp_path / "prepared", model, tokenizer, {})
    assert (tmp_path / "prepared" / "train.bin").exists()
    (folder / ".git").mkdir()
    with pytest.raises(
        ValueError, match=r"saved holds a folder, \.git, which is no part of a checkpoint, so it is not"
    ):
        save_checkpoint(folder, model, tokenizer, {})
    assert (folder / ".git").exists()


@pytest.mark.parametrize("ranks", [100, 264])
def test_saving_a_tokenizer_that_does_not_fit_is_refused(
    tmp_path: Path, model: Thoughtbubbles, write_ranks: Callable[..., Path], ranks: int
) -> None:
    tokens = [bytes([byte]) for byte in range(256)] + [b"x" * length for length in range(2, 10)]
    other = Tokenizer.from_file(write_ranks("other", tokens[:ranks]))
    with pytest.raises(ValueError, match="tokens and the model a vocab_size of 264"):
        save_checkpoint(tmp_path / "new", model, other, {})
    assert not (tmp_path / "new").exists()


class StopError(Exception):
    """The machine stops here."""


@pytest.mark.parametrize("renames", [0, 1])
def test_stopping_while_replacing_leaves_the_old_one_loadable(
    folder: Path, model: Thoughtbubbles, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """A stop before the old folder is moved aside, and one between that and the new one's arrival."""
    real, left = Path.rename, [renames]

    def rename(path: Path, target: Path) -> Path:
        if not left[0]:
            raise StopError
        left[0] -= 1
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        patch.setattr(atomic.shutil, "rmtree", lambda *_args, **_options: None)
        with pytest.raises(StopError):
            save_checkpoint(folder, model, tokenizer, {"steps": 4})
    assert folder.exists() == (renames == 0)
    assert load_checkpoint(folder).provenance == PROVENANCE

    save_checkpoint(folder, model, tokenizer, {"steps": 5})
    assert load_checkpoint(folder).provenance == {"steps": 5}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["ranks.tiktoken", "saved"]


def test_a_failure_while_writing_changes_nothing(
    folder: Path, model: Thoughtbubbles, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("thoughtbubbles.model.checkpoint.write.write_weights", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(folder, model, tokenizer, {"steps": 4})
    assert load_checkpoint(folder).provenance == PROVENANCE
    assert sorted(path.name for path in folder.parent.iterdir()) == ["ranks.tiktoken", "saved"]
