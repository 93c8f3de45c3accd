"""Train a byte-level BPE vocabulary with `tokenizers`, and write it as tiktoken ranks."""

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
    """Train `vocab_size` - 1 byte-pair tokens (end-of-text is the last id) and write the `.tiktoken` file `path`.

    Raises `ValueError` if `vocab_size` is too small for the 256 bytes and a merge, or too large for the text.
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
    """Return a byte-level BPE of `tokens` tokens with GPT-2's pre-tokenisation.

    Of very long runs only the beginning is used: with one word of megabytes, each merge would take minutes.
    """
    try:  # optional: training with an existing vocabulary does not need it
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
    """Return the tokens in rank order: all 256 bytes, then the merges in the order they were learned.

    tiktoken merges the pair with the lowest joint rank first, which is that order.
    """
    unicode_byte = _printable_bytes()
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    tokens = (bytes(unicode_byte[c] for c in token) for token in sorted(vocabulary, key=vocabulary.__getitem__))
    return [bytes([b]) for b in range(256)] + [token for token in tokens if len(token) > 1]


def _printable_bytes() -> dict[str, int]:
    """Return GPT-2's table from the printable character that represents a byte to the byte.

    Printable bytes represent themselves; the others are numbered from U+0100 upwards.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
