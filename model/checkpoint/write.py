"""Write a checkpoint, whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from thoughtbubbles.model.checkpoint.checks import (
    CHAT_TEMPLATE_FILE,
    CONFIG_FILE,
    FORMAT_VERSION,
    TOKENIZER_FILE,
    check_replaceable,
    check_template,
    check_vocabulary,
    describe,
)
from thoughtbubbles.model.checkpoint.weights import SHARD_BYTES, write_weights
from thoughtbubbles.model.files.atomic import new_folder
from thoughtbubbles.model.text.tokenizer import Tokenizer
from thoughtbubbles.model.transformer import Thoughtbubbles


def save_checkpoint(
    folder: str | Path,
    model: Thoughtbubbles,
    tokenizer: Tokenizer,
    provenance: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    *,
    chat_template: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    settings: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a checkpoint to `folder`; one that is already there stays loadable until the new one replaces it.

    Weights are stored as `dtype` (None: unchanged), in shards above `shard_bytes` bytes. `settings` are added to
    config.json and `files` to the folder, for other programs that read checkpoints. Raises `ValueError` if the
    tokenizer does not fit the model, `chat_template` does not parse, or `folder` holds anything but a checkpoint.
    """
    folder = Path(folder).resolve()
    check_vocabulary(model.config, tokenizer)
    check_replaceable(folder)
    if chat_template is not None:
        check_template(chat_template.encode())
    config = {
        "format_version": FORMAT_VERSION,
        "model": model.config.to_dict(),
        "tokenizer": describe(tokenizer),
        "provenance": dict(provenance),
        **(settings or {}),
    }
    with new_folder(folder) as partial:
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n")
        tokenizer.save(partial / TOKENIZER_FILE)
        if chat_template is not None:
            (partial / CHAT_TEMPLATE_FILE).write_bytes(chat_template.encode())
        for name, content in (files or {}).items():
            (partial / name).write_bytes(content)
        write_weights(partial, model.state_dict(), dtype or model.transformer.wte.weight.dtype, shard_bytes)
