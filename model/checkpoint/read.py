"""Read a checkpoint, with its weights or without."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from thoughtbubbles.model.checkpoint.checks import (
    CHAT_TEMPLATE_FILE,
    CONFIG_FILE,
    FORMAT_VERSION,
    MODEL_TYPE,
    TOKENIZER_FILE,
    TOKENIZER_JSON,
    CheckpointError,
    check_architecture,
    check_device,
    check_dtype,
    check_template,
    check_vocabulary,
    describe,
)
from thoughtbubbles.model.checkpoint.hub import locate
from thoughtbubbles.model.checkpoint.weights import Header, read_headers, read_weights
from thoughtbubbles.model.config import ModelConfig
from thoughtbubbles.model.files.untrusted import explain, read_json_object, require_present, require_regular
from thoughtbubbles.model.text.tokenizer import Tokenizer
from thoughtbubbles.model.transformer import Thoughtbubbles

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory."""

    model: Thoughtbubbles
    """In evaluation mode."""
    tokenizer: Tokenizer
    provenance: dict[str, Any]
    """How the weights were made, as recorded when they were saved."""
    chat_template: str | None = None
    """The source of its `ChatTemplate`; None for a model of plain text."""
    name: str = ""
    """Its folder's name, or org/name if it is from a hub."""
    revision: str | None = None
    """The commit of its repository on a hub; None for a folder."""


def load_checkpoint(
    source: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    check: Callable[[Checkpoint], None] = lambda _checkpoint: None,
) -> Checkpoint:
    """Return the checkpoint `source`, a folder or a hub id (`checkpoint.hub`), its weights on `device` as `dtype`.

    `check` gets the checkpoint before its weights are read, and may refuse it with a `ValueError`. Raises
    `CheckpointError` if `source` is not a checkpoint or is refused, and `ValueError` if `device` or `dtype` cannot be
    used.
    """
    check_device(device)
    check_dtype(dtype)
    with _read(source) as (found, checkpoint):
        check(checkpoint)
        weights = read_weights(found, checkpoint.model.state_dict(), device, dtype)
        checkpoint.model.load_state_dict(weights, assign=True)
    return checkpoint


def open_checkpoint(source: str | Path) -> tuple[Checkpoint, list[Header]]:
    """Return the checkpoint `source` without weights (they are meta tensors), and the header of each tensor.

    Raises `CheckpointError` if `source` is not a checkpoint.
    """
    with _read(source) as (found, checkpoint):
        return checkpoint, read_headers(found, checkpoint.model.state_dict())


def shipped_checkpoint() -> Path:
    """Return the folder of the repository's checkpoint. Raise `ValueError` if there is none, or more than one."""
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
    """Return a model on the meta device: weights with shapes but no storage, until `load_state_dict(assign=True)`."""
    with torch.device("meta"):
        return Thoughtbubbles(config)


@contextmanager
def _read(source: str | Path) -> Iterator[tuple[Path, Checkpoint]]:
    """Yield the folder to read and its checkpoint without weights. Errors of the block become `CheckpointError` too."""
    location = locate(source)
    folder = location.folder
    try:
        if not folder.is_dir():
            _refuse_other(Path(source))
        config = _read_config(folder)
        tokenizer = _read_tokenizer(folder)
        if config["tokenizer"] != describe(tokenizer):
            raise ValueError(f"{TOKENIZER_FILE} is not the tokenizer that {CONFIG_FILE} describes")
        model = empty_model(ModelConfig.from_dict(config["model"])).eval()
        check_vocabulary(model.config, tokenizer)
        yield (
            folder,
            Checkpoint(
                model=model,
                tokenizer=tokenizer,
                provenance=config["provenance"],
                chat_template=_read_template(folder),
                name=location.name,
                revision=location.revision,
            ),
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: {explain(error)}") from error


def _refuse_other(path: Path) -> None:
    """Raise `OSError` or `ValueError` that says what `path` is, which is not a folder."""
    if not path.exists() and not path.is_symlink():
        raise ValueError("no such folder, and no hub id, which is org/name or org/name@revision")
    require_present(path)
    raise ValueError("not a folder: a checkpoint is a folder with config.json, a tokenizer and weights")


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json_object(folder / CONFIG_FILE)
    check_architecture(config)
    if config["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {config['format_version']} is not known: this program reads {FORMAT_VERSION}")
    parts = {"model", "tokenizer", "provenance"}
    extra = set(config) - parts - {"format_version"}
    foreign = extra and config.get("model_type") != MODEL_TYPE  # Hugging Face's tools add settings of their own
    if foreign or not all(isinstance(config.get(part), dict) for part in parts):
        raise ValueError(f"{CONFIG_FILE} must hold format_version, model, tokenizer and provenance, and nothing else")
    return config


def _read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a checkpoint; transformers' `save_pretrained` leaves only its tokenizer.json."""
    if not (folder / TOKENIZER_FILE).exists() and (folder / TOKENIZER_JSON).exists():
        return Tokenizer.from_tokenizer_json(folder / TOKENIZER_JSON)
    return Tokenizer.from_file(folder / TOKENIZER_FILE)


def _read_template(folder: Path) -> str | None:
    file = folder / CHAT_TEMPLATE_FILE
    if not file.exists() and not file.is_symlink():
        return None
    template = require_regular(file).read_bytes()
    check_template(template)
    return template.decode()
