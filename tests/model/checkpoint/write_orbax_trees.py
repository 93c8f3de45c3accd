"""Write `data/orbax.tar.xz`: training states as the authors' JAX code saves them; the weights follow from their names.

    pip install flax optax orbax-checkpoint 'jax[cpu]' && python tests/model/checkpoint/write_orbax_trees.py

The file in the repository was written with jax 0.10.2, flax 0.12.8, optax 0.2.8 and orbax-checkpoint 0.12.8.
"""

import json
import shutil
import tempfile
import zlib
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.training.train_state import TrainState

WIDTH, VOCABULARY, LAYERS, FORKS = 8, 264, 2, {1}
PARTITIONED = ("kernel", "wte", "fork_embedding")
FORK_XLA = {
    "plan": ["regular", "fork"],
    "vocab_size": VOCABULARY,
    "block_size": 16,
    "max_block_size": 32,
    "n_head": 2,
    "n_embd": WIDTH,
    "bias": True,
    "averaging_method": "residual",
    "merge_killed_tokens": False,
}
THESEUS = f"""\
architecture:
  rope: true
  n_layers: {LAYERS}
  n_embd: {WIDTH}
  n_head: 2
  block_size: 16
  max_block_size: 32
  vocab_size: {VOCABULARY}
  fork: [1]
  bias: true
  use_fork_channel: true
tokenizer:
  backend: tiktoken
  name: gpt2
"""


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter under flax' name."""
    norm = {"weight": (WIDTH,), "bias": (WIDTH,)}
    dense = {"attn.c_attn": 3 * WIDTH, "attn.c_proj": WIDTH, "mlp.c_fc": 4 * WIDTH}
    found: dict[str, tuple[int, ...]] = {"wte": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        block = {f"{name}.{end}": shape for name in ("ln_1", "ln_2") for end, shape in norm.items()}
        for name, out in dense.items():
            block |= {f"{name}.kernel": (WIDTH, out), f"{name}.bias": (out,)}
        block |= {"mlp.c_proj.kernel": (4 * WIDTH, WIDTH), "mlp.c_proj.bias": (WIDTH,)}
        if layer in FORKS:
            block |= {f"forking_ln.{end}": shape for end, shape in norm.items()}
            block |= {"forking_score.kernel": (WIDTH, 2), "fork_embedding": (WIDTH,)}
        found |= {f"blocks_{layer}.{name}": shape for name, shape in block.items()}
    return found | {f"ln_f.{end}": shape for end, shape in norm.items()}


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the weights of a parameter."""
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)


def write(folder: Path, dtype: jnp.dtype, *, boxed: bool) -> None:
    """Write the training state of a model to `folder`/checkpoint."""
    tree: dict = {}
    for name, shape in shapes().items():
        value = jnp.asarray(values(name, shape), dtype)
        *path, last = name.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = nn.Partitioned(value, names=("axis",) * value.ndim) if boxed and last in PARTITIONED else value
    state = TrainState.create(apply_fn=None, params=tree, tx=optax.adamw(1e-3))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoint", state)


def main() -> None:
    """Write both."""
    with tempfile.TemporaryDirectory() as parent:
        first, second = Path(parent) / "fork-xla", Path(parent) / "theseus"
        write(first, jnp.float32, boxed=True)
        (first / "config.json").write_text(json.dumps({"config": FORK_XLA, "steps": 3, "score": 0.5, "wandb": None}))
        write(second, jnp.bfloat16, boxed=False)
        (second / "config.json").write_text(json.dumps({"steps": 3, "score": 0.5}))
        (second / "config.yaml").write_text(THESEUS)
        shutil.make_archive(str(Path(__file__).parent / "data" / "orbax"), "xztar", parent)


if __name__ == "__main__":
    main()
