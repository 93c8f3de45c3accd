"""Encode text to token ids and decode them: byte-level BPE by tiktoken, with GPT-2's ranks or a checkpoint's own."""

import base64
import binascii
import threading
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path

import tiktoken

from thoughtbubbles.model.files.atomic import write_file
from thoughtbubbles.model.files.untrusted import require_regular
from thoughtbubbles.model.text.byte_level import read_ranks
from thoughtbubbles.model.text.runs import cut_runs

END_OF_TEXT = "<|endoftext|>"
PATTERN_NAME = "gpt2"
# GPT-2's split of text into words before bytes are merged, as tiktoken writes it to be fast.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
DOWNLOAD_SECONDS = 60.0


class Tokenizer:
    """A byte-level vocabulary and one special token, end-of-text, whose id follows the last rank.

    Make one with `from_name` or `from_file`. `encode` never returns the special token: `<|endoftext|>` in a text is
    encoded as its characters.
    """

    def __init__(self, ranks: dict[bytes, int], name: str) -> None:
        """Build from `ranks`, which maps the bytes of every token to its id, 0 … len(ranks) - 1."""
        self.end_of_text = len(ranks)
        self.vocab_size = len(ranks) + 1
        self.encoding = tiktoken.Encoding(
            name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
        )
        """How tiktoken encodes."""
        self._texts: dict[int, str | None] = {}
        self._absent = frozenset(byte for byte in range(256) if bytes([byte]) not in ranks)

    @classmethod
    def from_name(cls, name: str) -> "Tokenizer":
        """Return the vocabulary that tiktoken knows as `name`; only `gpt2` is supported.

        tiktoken looks in the folder named by `TIKTOKEN_CACHE_DIR`, then downloads.
        Raises `ValueError` for another name, or if the files cannot be loaded.
        """
        if name != "gpt2":
            raise ValueError(f"tokenizer {name!r} is not known: use gpt2 or the path of a ranks file")
        encoding = _tiktoken_encoding(name)
        ranks = {encoding.decode_single_token_bytes(i): i for i in range(encoding.eot_token)}
        return cls(ranks, name)

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Return the vocabulary of a file in tiktoken's form: on each line a token's bytes in base64 and its rank.

        Raises `OSError` if the file cannot be read, and `ValueError` naming it if it has another form.
        """
        return cls(_read_ranks(Path(path)), Path(path).name)

    @classmethod
    def from_tokenizer_json(cls, path: str | Path) -> "Tokenizer":
        """Return the vocabulary of a tokenizer.json with the ids of a checkpoint's (`model.text.byte_level`).

        Raises `OSError` if the file cannot be read, and `ValueError` naming the part that would give other ids.
        """
        return cls(read_ranks(Path(path), END_OF_TEXT), Path(path).name)

    @classmethod
    def from_name_or_file(cls, source: str) -> "Tokenizer":
        """Return `from_file(source)` if there is such a file, else `from_name(source)`."""
        return cls.from_file(source) if Path(source).is_file() else cls.from_name(source)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, whose very long runs are cut first (`model.text.runs`).

        Raises `ValueError` for a byte that the vocabulary lacks (GPT-2's lacks none).
        """
        self._check(text)
        first, *others = map(self.encoding.encode_ordinary, cut_runs(text))
        return list(chain(first, *others)) if others else first

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return `encode` of each text, computed on several threads."""
        for text in texts:
            self._check(text)
        cut = [list(cut_runs(text)) for text in texts]
        ids = iter(self.encoding.encode_ordinary_batch(list(chain.from_iterable(cut))))
        return [list(chain.from_iterable(islice(ids, len(parts)))) for parts in cut]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, with U+FFFD for bytes that are not UTF-8. Raise `ValueError` for an unknown id."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the exact bytes of `ids`. Raise `ValueError` for an unknown id."""
        return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token, which may be part of a character. Raise `ValueError` for an unknown id."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is outside the vocabulary of {self.vocab_size}")
        return self.encoding.decode_single_token_bytes(token_id)

    def token_text(self, token_id: int) -> str | None:
        """Return the text of one token; None for a part of a character. Raise `ValueError` for an unknown id."""
        try:
            return self._texts[token_id]
        except KeyError:
            return self._texts.setdefault(token_id, _text(self.token_bytes(token_id)))

    def save(self, path: str | Path) -> None:
        """Write the ranks in tiktoken's form, all or nothing. `from_file` reads the same tokenizer back."""
        lines = (base64.b64encode(self.token_bytes(i)) + b" %d\n" % i for i in range(self.end_of_text))
        write_file(Path(path), b"".join(lines))

    def _check(self, text: str) -> None:
        # tiktoken panics on a byte that no token covers; the panic is not an Exception.
        if self._absent and not self._absent.isdisjoint(text.encode("utf-8", errors="replace")):
            raise ValueError("the text has a byte that this tokenizer's vocabulary lacks")


def _text(token: bytes) -> str | None:
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _tiktoken_encoding(name: str) -> tiktoken.Encoding:
    """Return `tiktoken.get_encoding(name)`. Stop waiting after `DOWNLOAD_SECONDS`: its download has no time limit."""
    outcome: list[tiktoken.Encoding | Exception] = []

    def load() -> None:
        try:
            outcome.append(tiktoken.get_encoding(name))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(DOWNLOAD_SECONDS)
    result = outcome[0] if outcome else TimeoutError()
    if isinstance(result, Exception):
        raise ValueError(
            f"tokenizer {name!r} could not be loaded ({type(result).__name__}). Set TIKTOKEN_CACHE_DIR to a folder"
            " where tiktoken has stored it, or give the path of a ranks file instead"
        ) from result
    return result


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(require_regular(path).read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            key, value = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{path}, line {number}: not a token in base64 and its rank") from error
        if key in ranks:
            raise ValueError(f"{path}, line {number}: the token of rank {ranks[key]} again")
        ranks[key] = value
    if not ranks or sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{path}: ranks must be 0, 1, 2, … without a gap or a repeat")
    return ranks
