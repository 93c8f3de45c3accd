"""`thoughtbubbles inspect`: describe a checkpoint from its files, without reading weights."""

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from thoughtbubbles.model.checkpoint.argument import add_checkpoint_argument
from thoughtbubbles.model.checkpoint.read import Checkpoint, open_checkpoint, shipped_checkpoint
from thoughtbubbles.model.checkpoint.weights import Header
from thoughtbubbles.model.config import ModelConfig

Facts = dict[str, Any]
"""JSON-ready."""

_CONTROLS = {
    field.name: field.default
    for field in fields(ModelConfig)
    if field.name in {"score_bias", "value_attenuation", "residual_attenuation", "select_by", "initial_keep_logit"}
}
"""Settings of ablations and controls with their defaults, which the page leaves out."""


def inspect_checkpoint(source: str | Path) -> Facts:
    """Return the facts of a checkpoint, JSON-ready; sizes and dtypes of tensors are those on disk.

    Raises `CheckpointError` if `source` is not a checkpoint, or is incomplete.
    """
    checkpoint, headers = open_checkpoint(source)
    config = checkpoint.model.config
    return {
        "checkpoint": str(source),
        "revision": checkpoint.revision,
        "parameters": sum(weight.numel() for weight in checkpoint.model.parameters()),
        "model": config.to_dict(),
        "budget": {name: getattr(config, name) for name in ("block_size", "max_block_size", "ratio", "max_ratio")},
        "tokenizer": _tokenizer(checkpoint),
        "chat_template": checkpoint.chat_template,
        "weights": _weights(headers),
        "provenance": checkpoint.provenance,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_checkpoint_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, with every tensor, instead of text")


def run(args: argparse.Namespace) -> int:
    """Print the facts and return 0."""
    facts = inspect_checkpoint(args.checkpoint or shipped_checkpoint())
    print(json.dumps(facts, indent=1, ensure_ascii=False) if args.json else page(facts))
    return 0


def page(facts: Facts) -> str:
    """Return `facts` as text: a line for each fact, and one line for the same tensor of all layers."""
    config = ModelConfig.from_dict(facts["model"])
    parts = {
        "model": _shape(config, facts["parameters"]),
        "budget": _budget(config),
        "tokenizer": facts["tokenizer"] | {"chat template": "yes" if facts["chat_template"] else "none"},
        "provenance": facts["provenance"],
        "weights": _stored(facts["weights"]),
    }
    lines = [line for name, part in parts.items() for line in ("", *_lines({name: part}))]
    revision = f" at {facts['revision']}" if facts["revision"] else ""
    return "\n".join([facts["checkpoint"] + revision, *lines])


def _tokenizer(checkpoint: Checkpoint) -> Facts:
    tokenizer = checkpoint.tokenizer
    return {"kind": "byte-level BPE", "vocab_size": tokenizer.vocab_size, "end_of_text": tokenizer.end_of_text}


def _weights(headers: list[Header]) -> Facts:
    return {
        "dtype": headers[0].dtype,
        "bytes": sum(header.bytes for header in headers),
        "files": sorted({header.file for header in headers}),
        "tensors": [
            {"name": h.name, "shape": h.shape, "dtype": h.dtype, "bytes": h.bytes, "file": h.file} for h in headers
        ],
    }


def _shape(config: ModelConfig, parameters: int) -> Facts:
    regular = ": a regular transformer" if config.copies == config.loops == 1 else ""
    return {
        "parameters": f"{parameters:,} (the tied head counted once)",
        "layers": config.n_layer,
        "width": config.n_embd,
        "heads": f"{config.n_head} of width {config.head_width}",
        "vocabulary": config.vocab_size,
        "fork layers": ", ".join(map(str, config.fork_layers)) or f"none{regular}",
        "averaging": config.averaging + (", each stream after the final norm" if config.norm_before_averaging else ""),
        "activation": config.activation,
        "bias": config.bias,
        "copies": config.copies,
        "loops": config.loops,
        **{name: getattr(config, name) for name, default in _CONTROLS.items() if getattr(config, name) != default},
    }


def _budget(config: ModelConfig) -> Facts:
    return {
        "L": f"{config.block_size} tokens of a training block",
        "κ": f"{config.max_block_size} streams for such a block",
        "r = κ / L": f"{config.ratio:g} streams a token, at most {config.max_ratio} by fork_ratio",
    }


def _stored(weights: Facts) -> Facts:
    groups: dict[str, list[Facts]] = {}
    for tensor in weights["tensors"]:
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", tensor["name"]), []).append(tensor)
    total = f"{weights['bytes']:,} bytes as {weights['dtype']}, {len(weights['tensors'])} tensors"
    return {", ".join(weights["files"]): total} | {name: _group(same) for name, same in groups.items()}


def _group(tensors: list[Facts]) -> str:
    count = f"{len(tensors)} × " if len(tensors) > 1 else ""
    return f"{count}{tensors[0]['shape']}, {sum(tensor['bytes'] for tensor in tensors):,} bytes"


def _lines(part: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    width = max(len(_text(name)) for name in part)
    for name, value in part.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{_text(name)}"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{_text(name):<{width}}  {_text(value)}"


def _text(value: object) -> str:
    """Return `value` on one line. Control characters are escaped: a checkpoint may come from anybody."""
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)
