"""A checkpoint: one folder with everything that a model needs to run.

    config.json               format version, model configuration, tokenizer, training provenance
    model.safetensors         the weights under the authors' names (above 4 GB in shards, with an index)
    tokenizer.tiktoken        the tokenizer's ranks
    chat_template.jinja       how a conversation is written for it, if it was tuned on conversations

Written whole or not at all. Nothing in it is code: no pickle is read.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from thoughtbubbles.model.checkpoint.weights import SHARD_BYTES, Header, read_headers, read_weights, write_weights
from thoughtbubbles.model.config import ModelConfig
from thoughtbubbles.model.files.atomic import latest_folder, new_folder
from thoughtbubbles.model.files.untrusted import read_json_object, require_regular
from thoughtbubbles.model.text.chat import ChatTemplate
from thoughtbubbles.model.text.tokenizer import PATTERN_NAME, Tokenizer
from thoughtbubbles.model.transformer import Thoughtbubbles

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.tiktoken"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints"
MAX_PADDING = 127
"""Rows that a vocabulary may be padded by, above the tokenizer's, to a multiple that hardware likes."""


class CheckpointError(ValueError):
    """A folder is not a checkpoint that this version can use; the message says which and why."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What `load_checkpoint` returns."""

    model: Thoughtbubbles
    """In evaluation mode."""
    tokenizer: Tokenizer
    provenance: dict[str, Any]
    """How the weights came to be, as whoever saved them wrote it down."""
    chat_template: str | None = None
    """How a conversation is written for it (`ChatTemplate`); None for a model of plain text."""


def save_checkpoint(
    folder: str | Path,
    model: Thoughtbubbles,
    tokenizer: Tokenizer,
    provenance: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    *,
    chat_template: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `folder`, replacing a checkpoint that is there; at every moment one of the two can be loaded.

    Weights are stored as `dtype` (None: as they are), above `shard_bytes` bytes in shards. Raises `ValueError` when
    the tokenizer does not fit the model, `chat_template` does not parse, or something else than a checkpoint is at
    `folder`.
    """
    folder = Path(folder).resolve()
    _check_vocabulary(model.config, tokenizer)
    _check_replaceable(folder)
    if chat_template is not None:
        _check_template(chat_template.encode())
    config = {
        "format_version": FORMAT_VERSION,
        "model": model.config.to_dict(),
        "tokenizer": _describe(tokenizer),
        "provenance": dict(provenance),
    }
    with new_folder(folder) as partial:
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n")
        tokenizer.save(partial / TOKENIZER_FILE)
        if chat_template is not None:
            (partial / CHAT_TEMPLATE_FILE).write_bytes(chat_template.encode())
        write_weights(partial, model.state_dict(), dtype or model.transformer.wte.weight.dtype, shard_bytes)


def load_checkpoint(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """Read a checkpoint, its weights to `device` as `dtype`.

    Raises `CheckpointError` with the reason when the folder is not one, `ValueError` for a device that is not here.
    """
    check_device(device)
    with _read(folder) as (found, checkpoint):
        weights = read_weights(found, checkpoint.model.state_dict(), device, dtype)
        checkpoint.model.load_state_dict(weights, assign=True)
    return checkpoint


def open_checkpoint(folder: str | Path) -> tuple[Checkpoint, list[Header]]:
    """Read a checkpoint but for its weights, which get shapes alone, and what its files say of every tensor.

    Raises `CheckpointError` as `load_checkpoint` does.
    """
    with _read(folder) as (found, checkpoint):
        return checkpoint, read_headers(found, checkpoint.model.state_dict())


def shipped_checkpoint() -> Path:
    """The folder of the checkpoint in the repository. `ValueError` when there is none, or more than one."""
    found = sorted(config.parent for config in SHIPPED.glob(f"*/{CONFIG_FILE}"))
    if not found:
        raise ValueError(
            f"no checkpoint is given, and {SHIPPED} has none: give a checkpoint's folder with --checkpoint. The"
            " repository has one, checkpoints/thoughtbubbles-11m; `thoughtbubbles train` and `thoughtbubbles convert`"
            " make others"
        )
    if len(found) > 1:
        raise ValueError(f"{SHIPPED} holds {len(found)} checkpoints: name one with --checkpoint")
    return found[0]


def empty_model(config: ModelConfig) -> Thoughtbubbles:
    """A model whose weights have shapes but no storage, to be given tensors by `load_state_dict(…, assign=True)`."""
    with torch.device("meta"):
        return Thoughtbubbles(config)


@contextmanager
def _read(folder: str | Path) -> Iterator[tuple[Path, Checkpoint]]:
    """The folder to read, and what it holds but for the weights. A failure, of the block too, is told as its reason."""
    folder = latest_folder(Path(folder).resolve())
    try:
        config = _read_config(folder)
        tokenizer = Tokenizer.from_file(folder / TOKENIZER_FILE)
        if config["tokenizer"] != _describe(tokenizer):
            raise ValueError(f"{TOKENIZER_FILE} is not the tokenizer that {CONFIG_FILE} describes")
        model = empty_model(ModelConfig.from_dict(config["model"])).eval()
        _check_vocabulary(model.config, tokenizer)
        yield (
            folder,
            Checkpoint(
                model=model,
                tokenizer=tokenizer,
                provenance=config["provenance"],
                chat_template=_read_template(folder),
            ),
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ValueError("no such folder")
    config = read_json_object(folder / CONFIG_FILE)
    if "format_version" not in config:
        raise ValueError(f"{CONFIG_FILE} is not a checkpoint's: it has no format_version")
    if config["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {config['format_version']} is not known: this program reads {FORMAT_VERSION}")
    parts = {"model", "tokenizer", "provenance"}
    if set(config) != parts | {"format_version"} or not all(isinstance(config[part], dict) for part in parts):
        raise ValueError(f"{CONFIG_FILE} must hold format_version, model, tokenizer and provenance, and nothing else")
    return config


def _read_template(folder: Path) -> str | None:
    file = folder / CHAT_TEMPLATE_FILE
    if not file.exists():
        return None
    template = require_regular(file).read_bytes()
    _check_template(template)
    return template.decode()


def _check_template(template: bytes) -> None:
    try:
        ChatTemplate(template.decode())
    except ValueError as error:
        raise ValueError(f"{CHAT_TEMPLATE_FILE} is not a template: {error}") from error


def check_device(device: torch.device | str) -> None:
    """`ValueError` naming `device` unless tensors can be made there and hold values."""
    try:
        if torch.empty(0, device=device).is_meta:
            raise ValueError(f"device {device} cannot be used: it holds no values")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device} cannot be used: {str(error).partition('. ')[0]}") from error


def _describe(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"file": TOKENIZER_FILE, "vocab_size": tokenizer.vocab_size, "pattern": PATTERN_NAME}


def _check_replaceable(folder: Path) -> None:
    # The tokenizer's file tells our checkpoints from others' folders, which may hold a config.json as well.
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / TOKENIZER_FILE).is_file()):
        raise ValueError(f"{folder} exists and is not a checkpoint, so it is not replaced")


def _check_vocabulary(config: ModelConfig, tokenizer: Tokenizer) -> None:
    if not 0 <= config.vocab_size - tokenizer.vocab_size <= MAX_PADDING:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model a vocab_size of {config.vocab_size},"
            f" which must be equal or up to {MAX_PADDING} more"
        )
