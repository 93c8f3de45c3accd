"""The vocabulary in a tokenizer.json of Hugging Face's `tokenizers`: byte-level BPE, as GPT-2 defined it."""

from pathlib import Path

from thoughtbubbles.model.files.untrusted import read_json_object

SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
"""What splits a text into words before bytes are merged: the same words as `model.text.tokenizer.PATTERN` gives."""


def read_ranks(path: Path, end_of_text: str) -> dict[bytes, int]:
    """Return the ranks of a tokenizer.json that `thoughtbubbles export` wrote or transformers saved again.

    Raises `OSError` if it cannot be read, and `ValueError` naming what would give other ids than the ranks do.
    """
    content = read_json_object(path)
    try:
        model, split = content["model"], content["pre_tokenizer"] or {}
        _require(model["type"] == "BPE" and model["ignore_merges"] is True, path, "model")
        _require(content["normalizer"] is None, path, "normalizer")
        _require({key: split.get(key) for key in SPLIT} == SPLIT, path, "pre_tokenizer")
        bytes_of = {name: byte for byte, name in enumerate(byte_names())}
        ranks = {bytes(bytes_of[letter] for letter in name): int(i) for name, i in model["vocab"].items()}
        added = [(token["content"], token["id"]) for token in content["added_tokens"]]
        _require(added == [(end_of_text, len(ranks))], path, "added_tokens")
        _require(sorted(ranks.values()) == list(range(len(ranks))), path, "vocab")
        _require([tuple(merge) for merge in model["merges"]] == merges(ranks), path, "merges")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} is not the byte-level BPE of a checkpoint") from error
    return ranks


def merges(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    """Return every pair of tokens that joins to a token, as tiktoken merges them: lowest rank of the result first."""
    names, pairs = byte_names(), []
    for token, rank in ranks.items():
        splits = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs += [(rank, ranks[a], ranks[b], a, b) for a, b in splits if a in ranks and b in ranks]
    return [(token_name(a, names), token_name(b, names)) for *_, a, b in sorted(pairs)]


def byte_names() -> list[str]:
    """Return the character that stands for each byte in byte-level BPE."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def token_name(token: bytes, names: list[str]) -> str:
    """Return the characters that stand for the bytes of `token`; `names` are `byte_names()`."""
    return "".join(names[byte] for byte in token)


def _require(ok: bool, path: Path, part: str) -> None:
    if not ok:
        raise ValueError(f"{path.name}: {part} gives other ids than the ranks of a checkpoint do")
