"""Training a byte-level BPE vocabulary with `tokenizers`, and writing it as tiktoken ranks."""

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer as BytePairTokenizer

from thoughtbubbles.model.text.runs import shorten_runs

MAX_VOCAB_SIZE = 1 << 24


def train_vocabulary(texts: Iterable[str], vocab_size: int, path: Path) -> None:
    """Learn `vocab_size` - 1 byte-pair tokens (end-of-text is the last id) and write `path`, a `.tiktoken` file.

    Raises `ValueError` when `vocab_size` leaves no room beside the 256 bytes, or when the text is too small for it.
    """
    if not 258 <= vocab_size <= MAX_VOCAB_SIZE:
        allowed = f"at least 258 (256 bytes, a merge, end-of-text) and at most {MAX_VOCAB_SIZE}"
        raise ValueError(f"vocab_size must be {allowed}, not {vocab_size}")
    ranks = tiktoken_ranks(train_byte_pairs(texts, vocab_size - 1))
    if len(ranks) != vocab_size - 1:
        raise ValueError(f"vocab_size {vocab_size} is more than this text can fill: it has {len(ranks)} tokens")
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks))
    path.write_text("".join(lines), encoding="ascii")


def train_byte_pairs(texts: Iterable[str], tokens: int) -> "BytePairTokenizer":
    """A byte-level BPE of `tokens` tokens with GPT-2's pre-tokenisation.

    What has no space for very long teaches with its beginning alone: one word of megabytes would take minutes a merge.
    """
    try:  # not all that train have it: a checkpoint's vocabulary or tiktoken's needs none
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ValueError("learning a vocabulary needs the package tokenizers: pip install tokenizers") from None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=tokens, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(map(shorten_runs, texts), trainer)
    return tokenizer


def tiktoken_ranks(tokenizer: "BytePairTokenizer") -> list[bytes]:
    """The tokens in rank order: all 256 bytes, then the merges as they were learnt.

    tiktoken merges the pair whose joint rank is lowest, which is the order of learning.
    """
    unicode_byte = _printable_bytes()
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    tokens = (bytes(unicode_byte[c] for c in token) for token in sorted(vocabulary, key=vocabulary.__getitem__))
    return [bytes([b]) for b in range(256)] + [token for token in tokens if len(token) > 1]


def _printable_bytes() -> dict[str, int]:
    """GPT-2's table from the printable character that stands for a byte to the byte.

    Bytes that are printable stand for themselves; the others are numbered from U+0100 upwards.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
