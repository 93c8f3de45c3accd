"""Refuse what cannot be a checkpoint: a folder, a vocabulary, a chat template or a device that does not fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from thoughtbubbles.model.config import ModelConfig
from thoughtbubbles.model.text.chat import ChatTemplate
from thoughtbubbles.model.text.tokenizer import PATTERN_NAME, Tokenizer

FORMAT_VERSION = 1
MODEL_TYPE = "thoughtbubbles"
"""`model_type` in the config.json of a checkpoint that Hugging Face's tools read too."""
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.tiktoken"
TOKENIZER_JSON = "tokenizer.json"
"""The tokenizer as Hugging Face's tools read and save it."""
CHAT_TEMPLATE_FILE = "chat_template.jinja"
MAX_PADDING = 127
"""Most rows that a model's vocabulary may have above the tokenizer's, to reach a multiple that hardware likes."""


class CheckpointError(ValueError):
    """A folder is not a checkpoint that this version can use; the message names the folder and the reason."""


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what config.json says about `tokenizer`."""
    return {"file": TOKENIZER_FILE, "vocab_size": tokenizer.vocab_size, "pattern": PATTERN_NAME}


def check_architecture(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` naming the architecture if `config`, of a config.json, is not a checkpoint's."""
    if "format_version" not in config:
        kind = f"its model_type is {config['model_type']!r}" if "model_type" in config else "it has no format_version"
        raise ValueError(f"{CONFIG_FILE} is not a checkpoint's: {kind}")


def check_vocabulary(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raise `ValueError` unless the model has a row for each token, and at most `MAX_PADDING` more."""
    if not 0 <= config.vocab_size - tokenizer.vocab_size <= MAX_PADDING:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model a vocab_size of {config.vocab_size},"
            f" which must be equal or up to {MAX_PADDING} more"
        )


def check_template(template: bytes) -> None:
    """Raise `ValueError` unless `template` is a chat template that parses."""
    try:
        ChatTemplate(template.decode())
    except ValueError as error:
        raise ValueError(f"{CHAT_TEMPLATE_FILE} is not a template: {error}") from error


def check_replaceable(folder: Path) -> None:
    """Raise `ValueError` if `folder` holds anything but a checkpoint of ours."""
    entries = list(folder.iterdir()) if folder.is_dir() else []
    # Folders of others may hold a config.json as well, and prepared ones the tokenizer's file: only ours have both.
    ours = all((folder / name).is_file() for name in (CONFIG_FILE, TOKENIZER_FILE))
    if folder.is_file() or (entries and not ours):
        raise ValueError(f"{folder} exists and is not a checkpoint, so it is not replaced")
    if inner := next((entry.name for entry in entries if entry.is_dir()), None):
        raise ValueError(f"{folder} holds a folder, {inner}, which is no part of a checkpoint, so it is not replaced")


def check_device(device: torch.device | str) -> None:
    """Raise `ValueError` naming `device` unless it can hold tensors with values."""
    try:
        if torch.empty(0, device=device).is_meta:
            raise ValueError(f"device {device} cannot be used: it holds no values")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device} cannot be used: {str(error).partition('. ')[0]}") from error


def check_dtype(dtype: torch.dtype) -> None:
    """Raise `ValueError` naming `dtype` unless models compute in it."""
    if dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be float64, float32, bfloat16 or float16, not {dtype!r}")
