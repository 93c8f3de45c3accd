"""Convert training states that Orbax wrote with the names of the authors' JAX code (`write_orbax_trees.py`)."""

import re
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from thoughtbubbles.model import ModelConfig, Tokenizer, install_command, load_checkpoint
from thoughtbubbles.model.checkpoint import orbax
from thoughtbubbles.model.checkpoint.convert import convert

CONFIG = ModelConfig(
    vocab_size=264,
    block_size=16,
    max_block_size=32,
    n_layer=2,
    n_head=2,
    n_embd=8,
    fork_layers=(1,),
    activation="gelu_tanh",
)
WEIGHTS = {
    "transformer.wte.weight": ("wte", (264, 8)),
    "transformer.ln_f.bias": ("ln_f.bias", (8,)),
    "transformer.h.0.ln_1.weight": ("blocks_0.ln_1.weight", (8,)),
    "transformer.h.1.fork_embedding": ("blocks_1.fork_embedding", (8,)),
    "transformer.h.1.mlp.c_fc.bias": ("blocks_1.mlp.c_fc.bias", (32,)),
}
TRANSPOSED = {
    "transformer.h.0.attn.c_attn.weight": ("blocks_0.attn.c_attn.kernel", (8, 24)),
    "transformer.h.1.mlp.c_proj.weight": ("blocks_1.mlp.c_proj.kernel", (32, 8)),
    "transformer.h.1.forking_score.weight": ("blocks_1.forking_score.kernel", (8, 2)),
}


@pytest.fixture
def states(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).parent / "data" / "orbax.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def written(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize(("code", "dtype"), [("fork-xla", torch.float32), ("theseus", torch.bfloat16)])
def test_a_training_state_becomes_a_checkpoint(
    states: Path, tokenizer: Tokenizer, code: str, dtype: torch.dtype
) -> None:
    release = convert(states / code, states / "out", tokenizer)
    found = load_checkpoint(states / "out", dtype=dtype).model
    assert found.config == CONFIG
    state = found.state_dict()
    for ours, (name, shape) in WEIGHTS.items():
        assert torch.equal(state[ours], written(name, shape).to(dtype)), ours
    for ours, (name, shape) in TRANSPOSED.items():
        assert torch.equal(state[ours], written(name, shape).T.to(dtype)), ours
    assert {"step", "opt_state.0.mu.wte"} <= set(release.dropped)
    with pytest.raises(ValueError, match="is already a Thoughtbubbles checkpoint"):
        convert(states / "out", states / "again", tokenizer)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rope: true", "rope: false", "config.yaml: rope False is not supported"),
        ("fork: [1]", "fork: []", "config.yaml: fork must name a layer, or be absent"),
        ("n_head: 2", "", "config.yaml: settings are missing: n_head"),
        ("n_head: 2", "intermediate_size: 9\n  n_head: 2", "config.yaml: intermediate_size 9 is not supported"),
        ("fork: [1]", "fork: [0]", "tensors are missing: transformer.h.0.fork_embedding"),
        ("name: gpt2", "name: cl100k_base", "config.yaml: tokenizer cl100k_base is not supported, only gpt2"),
        ("architecture:", "others:", "config.yaml: it has no settings under architecture"),
        ("architecture:", "{", "config.yaml: not YAML that can be read"),
    ],
)
def test_settings_that_do_not_fit(states: Path, tokenizer: Tokenizer, old: str, new: str, message: str) -> None:
    file = states / "theseus" / "config.yaml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        convert(states / "theseus", states / "out", tokenizer)


def test_damaged_trees_are_refused(states: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(ValueError, match=re.escape(f"Orbax needs packages: {install_command('jax')}")):
        convert(states / "fork-xla", states / "out", tokenizer)
    monkeypatch.undo()
    folder = states / "fork-xla" / "checkpoint"
    for file in (folder / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(ValueError, match=r"fork-xla/checkpoint: params\.\S+ cannot be read: "):
        convert(states / "fork-xla", states / "out", tokenizer)
    (folder / "_METADATA").write_text('{"tree_metadata": [1]}')
    with pytest.raises(ValueError, match="_METADATA is not the index of an Orbax tree"):
        convert(states / "fork-xla", states / "out", tokenizer)


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("params.blocks_12.mlp.c_fc.kernel.value", "transformer.h.12.mlp.c_fc.weight"),
        ("opt_state.1.0.mu.blocks_0.ln_1.weight", "opt_state.1.0.mu.blocks_0.ln_1.weight"),
        ("params.value_head.kernel", "params.value_head.kernel"),
    ],
)
def test_names(stored: str, name: str) -> None:
    assert orbax.release_name(stored) == name
