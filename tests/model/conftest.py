"""A vocabulary and a model small enough to save and load many times."""

import base64
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from thoughtbubbles.model import ModelConfig, Thoughtbubbles, Tokenizer

WriteRanks = Callable[[str, Iterable[bytes]], Path]


@pytest.fixture
def write_ranks(tmp_path: Path) -> WriteRanks:
    """Write tokens in tiktoken's form to a file of the given name."""

    def write(name: str, tokens: Iterable[bytes]) -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
        return path

    return write


@pytest.fixture
def tokenizer(write_ranks: WriteRanks) -> Tokenizer:
    """256 bytes, five merges and end-of-text."""
    merges = [b"th", b"the", b" t", b" the", b"\xf0\x9f"]
    return Tokenizer.from_file(write_ranks("ranks.tiktoken", [bytes([byte]) for byte in range(256)] + merges))


@pytest.fixture
def model() -> Thoughtbubbles:
    """Two layers, the second forking, with a vocabulary padded by two above the tokenizer's."""
    config = ModelConfig(
        vocab_size=264, block_size=16, max_block_size=32, n_layer=2, n_head=2, n_embd=16, fork_layers=(1,)
    )
    torch.manual_seed(1)
    return Thoughtbubbles(config).eval()
