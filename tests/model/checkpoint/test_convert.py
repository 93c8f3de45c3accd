import argparse
import json
import os
import pickle
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed import checkpoint as dcp

from thoughtbubbles.model import Thoughtbubbles, Tokenizer, load_checkpoint
from thoughtbubbles.model.checkpoint.convert import add_arguments, convert, run

CONFORMANCE = Path(os.environ.get("THOUGHTBUBBLES_CONFORMANCE", Path(__file__).parents[4] / "shared" / "conformance"))
CASES = sorted(CONFORMANCE.glob("*/"))
IDS = torch.tensor([[5, 250, 17, 17, 17, 99]])
SETTINGS = {
    "experiment": "small",
    "lr": 2.5e-4,
    "plan": ["regular", "fork"],
    "vocab_size": 264,
    "block_size": 16,
    "max_block_size": 32,
    "n_head": 2,
    "n_embd": 16,
    "bias": True,
    "dropout": 0.1,
    "averaging_method": "residual",
    "merge_killed_tokens": False,
}
Save = Callable[[Path, dict[str, Tensor]], object]


def save_dcp(folder: Path, state: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(state, checkpoint_id=folder, no_dist=True)


def with_optimizer(state: dict[str, Tensor]) -> dict[str, Any]:
    moments = {name: {"exp_avg": torch.zeros_like(tensor)} for name, tensor in state.items()}
    return {"model": state, "optimizer": {"state": moments}, "steps": 3}


def tied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the authors' modules save: the tied head again, and under data parallelism and compilation prefixes."""
    return state | {"lm_head.weight": state["transformer.wte.weight"]}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


FORMATS: dict[str, Save] = {
    "safetensors": lambda folder, state: save_file(state, folder / "model.safetensors"),
    "state-dict": lambda folder, state: torch.save(tied(state), folder / "model.pt"),
    "wrapped": lambda folder, state: torch.save(prefixed("module._orig_mod.", tied(state)), folder / "model.pt"),
    "nested": lambda folder, state: torch.save(with_optimizer(tied(state)), folder / "model.pth"),
    "distributed": lambda folder, state: save_dcp(folder, tied(state)),
    "distributed-nested": lambda folder, state: save_dcp(folder / "step-3", with_optimizer(prefixed("module.", state))),
}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    folder.mkdir()
    write_settings(folder)
    return folder


def write_settings(folder: Path, **changes: object) -> None:
    settings = {name: value for name, value in (SETTINGS | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps({"config": settings, "steps": 3, "score": 0.5, "wandb": None}))


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_of_a_release_gives_its_model(
    release: Path, model: Thoughtbubbles, tokenizer: Tokenizer, form: str
) -> None:
    FORMATS[form](release, model.state_dict())
    convert(release, release.parent / "out", tokenizer, norm_before_averaging=False)
    converted = load_checkpoint(release.parent / "out")
    assert converted.model.config == model.config
    assert converted.provenance["settings"] == SETTINGS
    assert torch.equal(converted.model(IDS), model(IDS))


def test_the_first_release_normalises_before_averaging(
    release: Path, model: Thoughtbubbles, tokenizer: Tokenizer
) -> None:
    save_file(model.state_dict(), release / "model.safetensors")
    assert convert(release, release.parent / "out", tokenizer).config.norm_before_averaging
    write_settings(release, averaging_method="rightmost")
    assert convert(release, release.parent / "out", tokenizer).config.averaging == "rightmost"


def test_our_own_spelling_of_the_settings_keeps_the_default(
    release: Path, model: Thoughtbubbles, tokenizer: Tokenizer
) -> None:
    save_file(model.state_dict(), release / "weights.safetensors")
    (release / "config.json").write_text(json.dumps(model.config.to_dict()))
    assert convert(release / "weights.safetensors", release.parent / "out", tokenizer).config == model.config


def test_what_is_no_weight_is_left_out_and_listed(release: Path, model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    masks = {"transformer.h.0.attn.bias": torch.ones(4), "transformer.h.1.attn.rope.inv_freq": torch.ones(4)}
    torch.save(with_optimizer(model.state_dict() | masks), release / "model.pt")
    dropped = convert(release, release.parent / "out", tokenizer).dropped
    assert dropped[:2] == ["model.transformer.h.0.attn.bias", "model.transformer.h.1.attn.rope.inv_freq"]
    assert {name.split(".")[0] for name in dropped[2:]} == {"optimizer"}
    load_checkpoint(release.parent / "out")


def test_stored_dtypes_are_kept_and_mixtures_become_float32(
    release: Path, model: Thoughtbubbles, tokenizer: Tokenizer
) -> None:
    state = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    for changed, dtype in (({}, torch.bfloat16), ({"transformer.ln_f.weight": torch.ones(16)}, torch.float32)):
        save_file(state | changed, release / "model.safetensors")
        convert(release, release.parent / "out", tokenizer)
        stored = load_file(release.parent / "out" / "model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {dtype}


def test_the_head_alone_serves_as_the_embedding(release: Path, model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    state = tied(model.state_dict())
    del state["transformer.wte.weight"]
    save_file(state, release / "model.safetensors")
    convert(release, release.parent / "out", tokenizer, norm_before_averaging=False)
    assert torch.equal(load_checkpoint(release.parent / "out").model(IDS), model(IDS))


NORM = "transformer.ln_f.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({NORM: None}, f"tensors are missing: {NORM}"),
        ({NORM: torch.ones(17)}, "has shape"),
        ({"transformer.h.0.router.weight": torch.ones(2)}, "do not belong to this model: transformer.h.0.router"),
        ({"lm_head.weight": torch.ones(264, 16)}, "differs from transformer.wte.weight"),
        ({"transformer.wte.weight": None}, "hold 0 tensors named"),
        ({"ema.transformer.wte.weight": torch.ones(264, 16)}, "hold 2 tensors named"),
    ],
)
def test_other_weights_are_refused(
    release: Path, model: Thoughtbubbles, tokenizer: Tokenizer, change: dict[str, Tensor | None], reason: str
) -> None:
    state = {name: tensor for name, tensor in (model.state_dict() | change).items() if tensor is not None}
    save_file(state, release / "model.safetensors")
    with pytest.raises(ValueError, match=reason):
        convert(release, release.parent / "out", tokenizer)
    assert not (release.parent / "out").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"plan": ["regular", "loop"]}, "plan has layers that are not known: loop"),
        ({"merge_killed_tokens": True}, "merge_killed_tokens is not supported"),
        ({"n_head": None, "bias": None}, "settings are missing: n_head, bias"),
        ({"plan": None}, "unknown model settings"),
        ({"averaging_method": "mean"}, "averaging must be one of"),
    ],
)
def test_other_settings_are_refused(
    release: Path, tokenizer: Tokenizer, change: dict[str, object], reason: str
) -> None:
    write_settings(release, **change)
    with pytest.raises(ValueError, match=reason) as refusal:
        convert(release, release.parent / "out", tokenizer)
    assert "config.json" in str(refusal.value)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", ".metadata"])
def test_a_file_that_is_none_is_refused_by_name(release: Path, tokenizer: Tokenizer, name: str) -> None:
    (release / name).write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=name):
        convert(release, release.parent / "out", tokenizer)


@pytest.mark.parametrize("form", ["safetensors", "state-dict", "distributed"])
def test_truncated_weights_are_refused_by_name(
    release: Path, model: Thoughtbubbles, tokenizer: Tokenizer, form: str
) -> None:
    FORMATS[form](release, model.state_dict())
    weights = max(release.iterdir(), key=lambda file: file.stat().st_size)
    weights.write_bytes(weights.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=str(release)):
        convert(release, release.parent / "out", tokenizer)


@pytest.mark.parametrize("name", ["model.pt", ".metadata"])
def test_code_in_a_pickle_is_not_run(release: Path, tokenizer: Tokenizer, name: str) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(release / "run"),)

    if name == "model.pt":
        torch.save(Attack(), release / name)
    else:
        (release / name).write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match=name):
        convert(release, release.parent / "out", tokenizer)
    assert not (release / "run").exists()


def test_a_folder_without_weights_is_refused(release: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="name the weights file"):
        convert(release, release.parent / "out", tokenizer)
    with pytest.raises(FileNotFoundError):
        convert(release / "model-final.pt", release.parent / "out", tokenizer)


def test_the_command_says_what_it_wrote(
    release: Path, model: Thoughtbubbles, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(4) for layer in range(2)}
    save_file(model.state_dict() | masks, release / "model.safetensors")
    tokenizer.save(release / "ranks")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    out = release.parent / "out"
    assert run(parser.parse_args([str(release), str(out), "--tokenizer", str(release / "ranks")])) == 0
    count = sum(parameter.numel() for parameter in model.parameters())
    assert capsys.readouterr().out == (
        f"wrote {out}: 2 layers, forks before [1], norm_before_averaging True, {count:,} parameters\n"
        "left out transformer.h.*.attn.bias (2)\n"
    )
    load_checkpoint(out)


@pytest.mark.numeric
@pytest.mark.skipif(not CASES, reason="no conformance cases: set THOUGHTBUBBLES_CONFORMANCE")
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_conformance_folders_convert(
    tmp_path: Path, write_ranks: Callable[[str, Iterable[bytes]], Path], folder: Path, before: bool
) -> None:
    config = json.loads((folder / "config.json").read_text())
    case = json.loads((folder / "cases.json").read_text())[0]
    wanted = load_file(folder / "cases.safetensors")
    tokenizer = Tokenizer.from_file(write_ranks("ranks", (bytes([byte]) for byte in range(config["vocab_size"] - 1))))
    convert(folder, tmp_path / "out", tokenizer, norm_before_averaging=before)
    ratio = case["max_block_size"] / config["block_size"]
    logits = load_checkpoint(tmp_path / "out").model(wanted["0.ids"], rule=case["rule"], ratio=ratio)
    name = "residual_norm_before" if before else "residual"
    torch.testing.assert_close(logits, wanted[f"0.logits.{name}"], atol=2e-5, rtol=0)
