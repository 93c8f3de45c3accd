"""A checkpoint's tokenizer in the form of Hugging Face's `tokenizers`."""

import json
from typing import Any

from thoughtbubbles.model.text.tokenizer import END_OF_TEXT, Tokenizer


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """Return the contents of tokenizer.json: byte-level BPE with the ids of `tokenizer`.

    Two differences remain: `<|endoftext|>` in a text is the special token, as in every tokenizer of this form, and runs
    of more than `model.text.runs.MAX_RUN` characters are not cut.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers  # noqa: PLC0415 - for this command alone
    from tokenizers import Tokenizer as HuggingFaceTokenizer  # noqa: PLC0415

    ranks = {tokenizer.token_bytes(i): i for i in range(tokenizer.end_of_text)}
    names = _byte_names()
    vocabulary = {_name(token, names): rank for token, rank in ranks.items()}
    merges = [(_name(left, names), _name(right, names)) for left, right in _merges(ranks)]
    # tiktoken looks a whole word up before it merges: ignore_merges does the same.
    found = HuggingFaceTokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return found.to_str(pretty=True)


def tokenizer_config(block_size: int, chat_template: str | None) -> dict[str, Any]:
    """Return the contents of tokenizer_config.json."""
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": block_size,
    }
    return config if chat_template is None else {**config, "chat_template": chat_template}


def to_json(value: object) -> bytes:
    """Return `value` as an indented file of JSON."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return every pair of tokens that joins to a token, as tiktoken merges them: lowest rank of the result first."""
    pairs = []
    for token, rank in ranks.items():
        splits = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs += [(rank, ranks[a], ranks[b], a, b) for a, b in splits if a in ranks and b in ranks]
    return [(a, b) for *_, a, b in sorted(pairs)]


def _byte_names() -> list[str]:
    """Return the character that stands for each byte in byte-level BPE, as GPT-2 defined them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def _name(token: bytes, names: list[str]) -> str:
    return "".join(names[byte] for byte in token)
