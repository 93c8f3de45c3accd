"""Read the authors' PyTorch release: map its settings and tensor names to ours.

config.json   the settings, or a record of the trainer with the settings under `config`. The layers are a `plan`, a list
              of "regular" and "fork"; `averaging_method` is our `averaging`; training settings are ignored
weights       `transformer.wte.weight`, `transformer.h.3.forking_score.weight`, …, under any prefix of a wrapper
              (`module.`, `_orig_mod.`) or of a training state (`model.`); see `release_files`
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thoughtbubbles.model.checkpoint.release_files import read_tensors
from thoughtbubbles.model.config import ModelConfig
from thoughtbubbles.model.files.untrusted import read_json_object, require_present

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

    `norm_before_averaging` overrides the settings. By default it is on for settings with a `plan`, which are the
    authors' first PyTorch release (SPEC.md, "Output averaging"). Raises `OSError` for a missing file, `ValueError` for
    contents that are not a release.
    """
    settings = read_settings(source)
    config_file = _config_file(source)
    try:
        config = _read_config(settings)
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
    content = read_json_object(config_file)
    if "format_version" in content:
        raise ValueError(f"{config_file.parent} is already a Thoughtbubbles checkpoint: nothing is to be converted")
    settings = content.get("config", content)
    if not isinstance(settings, dict):
        raise ValueError(f"{config_file}: it is not a JSON object of settings")
    return settings


def _config_file(source: Path) -> Path:
    return (source if source.is_dir() else source.parent) / "config.json"


def _read_config(settings: Mapping[str, Any]) -> ModelConfig:
    if "plan" not in settings:
        return ModelConfig.from_dict(settings)
    plan = settings["plan"]
    if unknown := sorted(set(plan) - set(LAYERS)):
        raise ValueError(f"plan has layers that are not known: {', '.join(unknown)}")
    if settings.get("merge_killed_tokens"):
        raise ValueError("merge_killed_tokens is not supported")
    same = ("vocab_size", "block_size", "max_block_size", "n_head", "n_embd", "bias")
    if missing := [name for name in same if name not in settings]:
        raise ValueError(f"settings are missing: {', '.join(missing)}")
    return ModelConfig(
        **{name: settings[name] for name in same},
        n_layer=len(plan),
        fork_layers=tuple(layer for layer, word in enumerate(plan) if LAYERS[word]),
        averaging=settings.get("averaging_method", "residual"),
        norm_before_averaging=True,
    )


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
