import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import thoughtbubbles.model.text.tokenizer as module
from thoughtbubbles.model import Tokenizer

WriteRanks = Callable[[str, Iterable[bytes]], Path]
GPT2_CACHE = Path(__file__).parents[4] / "shared" / "tiktoken"
TEXTS = [
    "",
    "Hello world",
    " the the\n\n  cat's   ",
    "naïve café 東京 🫧",
    "a<|endoftext|>b",
    "x" * 5000,
    "\t1234 don't",
]


@pytest.fixture
def gpt2(monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    if not GPT2_CACHE.is_dir():
        pytest.skip("GPT-2's vocabulary is not in ../shared/tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(GPT2_CACHE))
    return Tokenizer.from_name("gpt2")


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_undoes_encoding(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode()


def test_the_merges_are_used_and_stop_at_words(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("the the") == [257, 259]
    assert tokenizer.encode_batch(["the", "", " the"]) == [[257], [], [259]]


def test_end_of_text_follows_the_ranks_and_is_never_made_from_text(tokenizer: Tokenizer) -> None:
    assert (tokenizer.end_of_text, tokenizer.vocab_size) == (261, 262)
    assert tokenizer.end_of_text not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.decode([tokenizer.end_of_text]) == "<|endoftext|>"


def test_half_a_character_decodes_to_a_replacement(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode_bytes([260]) == b"\xf0\x9f"
    assert tokenizer.decode([260]) == "\N{REPLACEMENT CHARACTER}"


def test_a_token_has_a_text_where_it_is_whole_characters(tokenizer: Tokenizer) -> None:
    for _ in range(2):
        assert [tokenizer.token_text(i) for i in (257, 260, 261)] == ["the", None, "<|endoftext|>"]


@pytest.mark.parametrize("token_id", [-1, 262])
def test_ids_outside_are_refused(tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(ValueError, match=f"{token_id} is outside the vocabulary of 262"):
        tokenizer.token_text(token_id)
    with pytest.raises(ValueError, match=f"{token_id} is outside the vocabulary of 262"):
        tokenizer.decode([token_id])


def test_saved_ranks_give_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "saved.tiktoken")
    assert (tmp_path / "saved.tiktoken").read_bytes() == (tmp_path / "ranks.tiktoken").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ranks.tiktoken", "saved.tiktoken"]


def test_a_vocabulary_without_some_bytes_refuses_them_alone(write_ranks: WriteRanks) -> None:
    letters = Tokenizer.from_file(write_ranks("letters", [b"a", b"b"]))
    assert letters.encode("abba") == [0, 1, 1, 0]
    for encode in (letters.encode, lambda text: letters.encode_batch(["ab", text])):
        with pytest.raises(ValueError, match="lacks"):
            encode("abc")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "ranks must be"),
        (b"YQ== 0\nYg== 2\n", "ranks must be"),
        (b"YQ== 0\nYg== 0\n", "ranks must be"),
        (b"YQ== 0\nYQ== 1\n", "line 2: the token of rank 0 again"),
        (b"YQ== 0\n!!!! 1\n", "line 2: not a token"),
        (b"YQ== 0\nYg==\n", "line 2: not a token"),
        (b"YQ== zero\n", "line 1: not a token"),
    ],
)
def test_damaged_ranks_are_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "damaged.tiktoken"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as refusal:
        Tokenizer.from_file(path)
    assert str(path) in str(refusal.value)


def test_gpt2_by_name(gpt2: Tokenizer, tmp_path: Path) -> None:
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    assert gpt2.encode("Hello world") == [15496, 995]
    gpt2.save(tmp_path / "gpt2.tiktoken")
    again = Tokenizer.from_file(tmp_path / "gpt2.tiktoken")
    assert [again.encode(text) for text in TEXTS] == gpt2.encode_batch(TEXTS)


def test_a_command_line_names_a_file_or_a_vocabulary(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path / "gpt2")
    assert Tokenizer.from_name_or_file(str(tmp_path / "gpt2")).vocab_size == tokenizer.vocab_size
    with pytest.raises(ValueError, match="no-file' is not known: use gpt2 or the path of a ranks file"):
        Tokenizer.from_name_or_file("no-file")


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'cl100k_base' is not known"):
        Tokenizer.from_name("cl100k_base")


def test_gpt2_that_cannot_be_had_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str) -> None:
        raise OSError("no route")

    monkeypatch.setattr(module.tiktoken, "get_encoding", fail)
    with pytest.raises(ValueError, match=r"OSError.*TIKTOKEN_CACHE_DIR"):
        Tokenizer.from_name("gpt2")


def test_a_download_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DOWNLOAD_SECONDS", 0.01)
    monkeypatch.setattr(module.tiktoken, "get_encoding", lambda _name: time.sleep(1))
    with pytest.raises(ValueError, match=r"TimeoutError.*TIKTOKEN_CACHE_DIR"):
        Tokenizer.from_name("gpt2")


def test_a_failed_save_leaves_the_old_ranks(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (tmp_path / "ranks.tiktoken").read_bytes()

    def fail(_descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        tokenizer.save(tmp_path / "ranks.tiktoken")
    assert (tmp_path / "ranks.tiktoken").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["ranks.tiktoken"]
