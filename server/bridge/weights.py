"""Weights of a checkpoint that is loaded while a server runs: whether they fit the served model, and their version."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from hashlib import sha256

import torch
from torch import Tensor

from thoughtbubbles.model import Checkpoint, Thoughtbubbles, Tokenizer, load_checkpoint
from thoughtbubbles.server.core import ServedModel

VERSION_LENGTH = 16
"""Hexadecimal digits of a version."""


@dataclass(frozen=True, kw_only=True)
class NewWeights:
    """Weights that fit the served model, in memory."""

    tensors: Mapping[str, Tensor]
    """As in the model's `state_dict()`, on the CPU in the dtype of the served model."""
    version: str
    """See `weights_version`."""
    revision: str | None
    """The commit of their repository on a hub; None for a folder."""


def read_weights(source: str, model: Thoughtbubbles, served: ServedModel) -> NewWeights:
    """Return the weights of the checkpoint `source`, a folder or a hub id, for `model`, which `served` describes.

    Raises `ValueError` or `OSError` with the reason if it cannot be read or differs in more than its weights; that is
    known before a weight is read.
    """
    dtype = model.transformer.wte.weight.dtype
    checkpoint = load_checkpoint(source, dtype=dtype, check=lambda found: _check_same(found, served))
    # Copies: tensors of a checkpoint are views of its files, which somebody may overwrite while requests finish.
    tensors = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    return NewWeights(tensors=tensors, version=weights_version(tensors), revision=checkpoint.revision)


def weights_version(weights: Mapping[str, Tensor]) -> str:
    """Return a digest of names, shapes, dtypes and values: the same weights in the same precision have the same."""
    digest = sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:VERSION_LENGTH]


def _check_same(checkpoint: Checkpoint, served: ServedModel) -> None:
    """Raise `ValueError` naming what differs if the checkpoint has another shape, tokenizer or chat template.

    A checkpoint without a template fits: `train` writes none, and the server keeps its own.
    """
    if differences := list(_differences(checkpoint, served)):
        raise ValueError(f"only its weights may differ from the served model, but {'; '.join(differences)}")


def _differences(checkpoint: Checkpoint, served: ServedModel) -> Iterator[str]:
    for field in fields(served.config):
        new, old = (getattr(config, field.name) for config in (checkpoint.model.config, served.config))
        if new != old:
            yield f"{field.name} is {new!r}, not {old!r}"
    if not _same_tokens(checkpoint.tokenizer, served.tokenizer):
        yield "the tokenizer has other tokens"
    template = checkpoint.chat_template
    if template is not None and (served.chat_template is None or template != served.chat_template.source):
        yield "the chat template is another"


def _same_tokens(a: Tokenizer, b: Tokenizer) -> bool:
    if a.vocab_size != b.vocab_size:
        return False
    return all(a.token_bytes(i) == b.token_bytes(i) for i in range(a.end_of_text))
