"""Read a checkpoint of the authors' PyTorch or JAX code: map its settings and tensor names to ours.

config.json   the settings, or a record of the trainer with the settings under `config`. The layers are a `plan`, a list
              of "regular" and "fork"; `averaging_method` is our `averaging`; training settings are ignored
config.yaml   of their second JAX code, theseus: the settings under `architecture`, `fork` a list of layers
weights       `transformer.wte.weight`, `transformer.h.3.forking_score.weight`, …, under any prefix of a wrapper
              (`module.`, `_orig_mod.`) or of a training state (`model.`); see `release_files`, for JAX `orbax`

JAX's GELU is the tanh approximation, and it averages streams before the final LayerNorm.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thoughtbubbles.model.checkpoint.release_files import has_orbax_tree, read_tensors
from thoughtbubbles.model.config import ModelConfig
from thoughtbubbles.model.extras import install_command
from thoughtbubbles.model.files.untrusted import read_json_object, require_present, require_regular

EMBEDDING = "transformer.wte.weight"
HEAD = "lm_head.weight"
LAYERS = {"regular": False, "fork": True}
# Masks and rotation tables: computed, not learned. Our model has no such tensors.
BUFFER = re.compile(r"\.attn\.(bias|masked_bias|rope\..+)$")


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release in the form of our model."""

    config: ModelConfig
    """`settings` as our configuration."""
    state: dict[str, Tensor]
    """Tensors on the CPU under the names of `Thoughtbubbles.state_dict`."""
    dropped: list[str]
    """Names of tensors that are not weights of the model: optimizer state, buffers."""
    settings: dict[str, Any]
    """The authors' own settings, kept as provenance."""


def read_release(source: Path, *, norm_before_averaging: bool | None = None) -> Release:
    """Return the release of a folder, or of a weights file with config.json beside it.

    `norm_before_averaging` overrides the settings. By default it is on for settings with a `plan` and no Orbax tree,
    which are the authors' first PyTorch release (SPEC.md, "Output averaging"). Raises `OSError` for a missing file,
    `ValueError` for contents that are not a release.
    """
    settings = read_settings(source)
    config_file = _config_file(source)
    try:
        config = _read_config(settings, jax=has_orbax_tree(source))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config_file}: {error}") from error
    if norm_before_averaging is not None:
        config = replace(config, norm_before_averaging=norm_before_averaging)
    state, dropped = read_tensors(source, _our_names)
    _tie_head(state)
    return Release(config=config, state=state, dropped=dropped, settings=settings)


def read_settings(source: Path) -> dict[str, Any]:
    """Return the authors' settings of a release, which `read_release` reads with its weights, and raises the same."""
    if not require_present(source).is_dir() and not source.is_file():
        raise OSError(f"{source} is neither a folder nor a regular file")
    config_file = _config_file(source)
    if config_file.suffix == ".yaml":
        return _read_yaml(config_file)
    content = read_json_object(config_file)
    if "format_version" in content:
        raise ValueError(f"{config_file.parent} is already a Thoughtbubbles checkpoint: nothing is to be converted")
    settings = content.get("config", content)
    if not isinstance(settings, dict):
        raise ValueError(f"{config_file}: it is not a JSON object of settings")
    return settings


def _config_file(source: Path) -> Path:
    folder = source if source.is_dir() else source.parent
    return folder / ("config.yaml" if (folder / "config.yaml").is_file() else "config.json")


def _read_yaml(file: Path) -> dict[str, Any]:
    """Return the settings in theseus' config.yaml: those of the model, under `architecture`."""
    try:
        import yaml  # noqa: PLC0415 - the extra `jax`
    except ModuleNotFoundError:
        raise ValueError(f"{file}: YAML needs packages: {install_command('jax')}") from None
    try:
        content = yaml.safe_load(require_regular(file).read_bytes())
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{file}: not YAML that can be read") from error
    settings = content.get("architecture") if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: it has no settings under architecture")
    tokenizer = content.get("tokenizer") or {}
    if isinstance(tokenizer, dict) and tokenizer.get("name", "gpt2") != "gpt2":
        raise ValueError(f"{file}: tokenizer {tokenizer['name']} is not supported, only gpt2")
    return settings


def _read_config(settings: Mapping[str, Any], *, jax: bool) -> ModelConfig:
    if "n_layers" in settings:
        return _read_theseus(settings)
    if "plan" not in settings:
        return ModelConfig.from_dict(settings)
    plan = settings["plan"]
    if unknown := sorted(set(plan) - set(LAYERS)):
        raise ValueError(f"plan has layers that are not known: {', '.join(unknown)}")
    if settings.get("merge_killed_tokens"):
        raise ValueError("merge_killed_tokens is not supported")
    same = ("vocab_size", "block_size", "max_block_size", "n_head", "n_embd", "bias")
    return ModelConfig(
        **_required(settings, same),
        n_layer=len(plan),
        fork_layers=tuple(layer for layer, word in enumerate(plan) if LAYERS[word]),
        averaging=settings.get("averaging_method", "residual"),
        activation="gelu_tanh" if jax else "gelu",
        norm_before_averaging=not jax,
    )


def _read_theseus(settings: Mapping[str, Any]) -> ModelConfig:
    """Return the configuration of theseus' Thoughtbubbles; without `fork`, of its regular model."""
    same = _required(settings, ("vocab_size", "block_size", "n_head", "n_embd", "n_layers"))
    supported = {"rope": (True,), "layer_norm_eps": (1e-5,), "intermediate_size": (-1, 4 * same["n_embd"])}
    for name, values in supported.items():
        if settings.get(name, values[0]) not in values:
            raise ValueError(f"{name} {settings[name]!r} is not supported")
    forks = settings.get("fork")
    if forks == []:  # theseus gives up a channel of its heads all the same
        raise ValueError("fork must name a layer, or be absent")
    return ModelConfig(
        n_layer=same.pop("n_layers"),
        **same,
        max_block_size=settings.get("max_block_size", 0) if forks else same["block_size"],
        fork_layers=tuple(forks or ()),
        bias=settings.get("bias", True),
        activation="gelu_tanh",
        score_bias=settings.get("use_fork_channel", True) or not forks,
    )


def _required(settings: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    if missing := [name for name in names if name not in settings]:
        raise ValueError(f"settings are missing: {', '.join(missing)}")
    return {name: settings[name] for name in names}


def _our_names(names: Iterable[str]) -> dict[str, str]:
    """Return our name for each of the release's `names` that is a weight of the model."""
    plain = {name: name.replace("_orig_mod.", "") for name in names}
    prefixes = {name.removesuffix(end) for name in plain.values() for end in (EMBEDDING, HEAD) if name.endswith(end)}
    if len(prefixes) != 1:
        raise ValueError(f"the weights hold {len(prefixes)} tensors named …{EMBEDDING}, where a release has one")
    prefix = prefixes.pop()
    ours = {name: each.removeprefix(prefix) for name, each in plain.items() if each.startswith(prefix)}
    return {name: each for name, each in ours.items() if _is_weight(each)}


def _is_weight(name: str) -> bool:
    return name == HEAD or (name.startswith("transformer.") and not BUFFER.search(name))


def _tie_head(state: dict[str, Tensor]) -> None:
    """Drop the head, which is tied to the embedding; if only the head was stored, it becomes the embedding."""
    head = state.pop(HEAD, None)
    if head is not None and not torch.equal(state.setdefault(EMBEDDING, head), head):
        raise ValueError(f"{HEAD} differs from {EMBEDDING}: a head that is not tied is not supported")
