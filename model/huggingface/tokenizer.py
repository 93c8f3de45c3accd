"""A checkpoint's tokenizer in the form of Hugging Face's `tokenizers`."""

import json
from typing import Any

from thoughtbubbles.model.text.byte_level import byte_names, merges, token_name
from thoughtbubbles.model.text.tokenizer import END_OF_TEXT, Tokenizer


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """Return the contents of tokenizer.json: byte-level BPE with the ids of `tokenizer`.

    Two differences remain: `<|endoftext|>` in a text is the special token, as in every tokenizer of this form, and runs
    of more than `model.text.runs.MAX_RUN` characters are not cut.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers  # noqa: PLC0415 - for this command alone
    from tokenizers import Tokenizer as HuggingFaceTokenizer  # noqa: PLC0415

    ranks = {tokenizer.token_bytes(i): i for i in range(tokenizer.end_of_text)}
    names = byte_names()
    vocabulary = {token_name(token, names): rank for token, rank in ranks.items()}
    # tiktoken looks a whole word up before it merges: ignore_merges does the same.
    found = HuggingFaceTokenizer(models.BPE(vocab=vocabulary, merges=merges(ranks), ignore_merges=True))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # `byte_level.SPLIT`
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return found.to_str()


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
