"""Documents to token files: nothing is lost, what is wrong is named, and tiktoken cuts text as the trained BPE does."""

import argparse
import gzip
import hashlib
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.harness import HELD_OUT, SUBJECTS, TEXTS, VERBS, VOCAB, write_json_lines
from thoughtbubbles.model import Tokenizer
from thoughtbubbles.training.data.corpus_writer import only_preparation
from thoughtbubbles.training.data.documents import FileDocuments, read_documents
from thoughtbubbles.training.data.prepare import add_arguments, prepare, run
from thoughtbubbles.training.data.token_file import Index, read_tokens
from thoughtbubbles.training.data.vocabulary import _printable_bytes, tiktoken_ranks, train_byte_pairs


def documents_of(folder: Path, split: str) -> list[str]:
    """What a token file says, cut at its end-of-text ids."""
    tokenizer = Tokenizer.from_file(folder / "tokenizer.tiktoken")
    texts: list[list[int]] = []
    for token in read_tokens(folder, split).tolist():
        if token == tokenizer.end_of_text:
            texts.append([])
        else:
            texts[-1].append(token)
    return [tokenizer.decode(ids) for ids in texts]


def test_every_document_comes_back_in_order_after_an_end_of_text(data: Path) -> None:
    assert documents_of(data, "train") == TEXTS
    assert documents_of(data, "val") == HELD_OUT


def test_the_index_says_what_the_files_hold(data: Path) -> None:
    index = Index.read(data)
    content = (data / "val.bin").read_bytes()
    assert (index.dtype, index.vocab_size) == ("uint16", VOCAB)
    assert index.val.tokens == len(content) // 2
    assert index.val.bytes == sum(len(text.encode()) for text in HELD_OUT)
    assert index.val.documents == len(HELD_OUT)
    assert index.val.sha256 == hashlib.sha256(content).hexdigest()
    assert list(index.train.sources) == ["train.jsonl"]


def test_the_command_tells_the_size_of_both_files_and_no_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [tmp_path / f"{name}.txt" for name in ("one", "two", "held-out")]
    for text in texts:
        text.write_text("abab", encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    learned, held_out = map(str, texts[:2]), str(texts[2])
    flags = ["--vocab-size", "258", "--workers", "1", "--out", str(tmp_path / "out")]
    assert run(parser.parse_args(["--train", *learned, "--val", held_out, *flags])) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/out/train.bin: 6 tokens, 8 bytes, 2 documents",
        f"{tmp_path}/out/val.bin: 3 tokens, 4 bytes, 1 documents",
    ]


def test_gzipped_lines_and_text_files_mix_under_a_given_vocabulary(data: Path, tmp_path: Path) -> None:
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"text": "one"}\n\n{"text": "two \\u00e9"}\n'))
    plain = tmp_path / "b.txt"
    plain.write_text("three\nlines\n", encoding="utf-8")
    prepare([packed, plain], [plain], tmp_path / "out", str(data / "tokenizer.tiktoken"))
    assert documents_of(tmp_path / "out", "train") == ["one", "two é", "three\nlines\n"]
    assert (tmp_path / "out" / "tokenizer.tiktoken").read_bytes() == (data / "tokenizer.tiktoken").read_bytes()


def test_a_written_out_end_of_text_in_a_document_is_text(data: Path, tmp_path: Path) -> None:
    source = write_json_lines(tmp_path / "a.jsonl", ["x<|endoftext|>y"])
    prepare([source], [source], tmp_path / "out", str(data / "tokenizer.tiktoken"))
    assert documents_of(tmp_path / "out", "train") == ["x<|endoftext|>y"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text": ', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"txt": "no"}\n', r"a\.jsonl:1: a document needs a string field 'text'"),
        ("a.jsonl", b'["text"]\n', r"a\.jsonl:1: a document needs"),
        ("a.jsonl", b'{"text": "fine"}\n' * 999 + b'{"text": "\xff"}\n', r"a\.jsonl:1000: .*utf-8.* position 10"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "\xff"}\n', mtime=0), r"a\.jsonl\.gz:1: .*utf-8"),
        ("a.txt", b"\xff\xfe", r"a\.txt:1: .*utf-8"),
        ("a.txt", b"fine\r\n" * 999 + b"\xff\n", r"a\.txt:1000: .*utf-8"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "cut short"}\n' * 99, mtime=0)[:-20], r"a\.jsonl\.gz: .*end"),
        ("a.jsonl.gz", b"not gzip", r"a\.jsonl\.gz: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "hurt"}\n' * 999, mtime=0)[:30] + b"\0" * 9, r"a\.jsonl\.gz: "),
        ("a.jsonl", b"\n", "no documents"),
        (
            "a.jsonl",
            b'{"text": "fine"}\n{"text": "half \\ud83d"}\n',
            r"a\.jsonl:2: the text has a lone surrogate, U\+D83D, at",
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": "\\udc00"}]}',
            r"a\.jsonl:1: the text has a lone surrogate",
        ),
        ("a.jsonl", b"[" * 100_000 + b"\n", r"a\.jsonl:1: not JSON that can be read \(it is nested too deeply\)"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", r"a\.jsonl:1: not JSON"),
    ],
)
def test_bad_input_is_refused_by_name(data: Path, tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        prepare([tmp_path / name], [tmp_path / name], tmp_path / "out", str(data / "tokenizer.tiktoken"))
    with pytest.raises(ValueError, match=r"has no index\.json"):
        Index.read(tmp_path / "out")  # a half-prepared folder does not pass for a whole one


def test_a_second_preparation_in_a_folder_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("abab", encoding="utf-8")
    parser, text, out = argparse.ArgumentParser(), str(tmp_path / "one.txt"), tmp_path / "out"
    add_arguments(parser)
    args = parser.parse_args(["--train", text, "--val", text, "--vocab-size", "258", "--out", str(out)])
    with only_preparation(out), pytest.raises(ValueError, match=r"^out: another preparation is writing to .*out; wait"):
        run(args)
    assert not (out / "train.bin").exists()
    (out / "val.bin").write_bytes(b"left")  # one token file alone is nobody's data
    assert run(args) == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("A.JSONL", b'{"text": "one"}\n'), ("a.JsonL.GZ", gzip.compress(b'{"text": "one"}\n')), ("a.TXT", b"one"),
        ("a.ndjson", b'{"text": "one"}\n'), ("A.NDJSON.gz", gzip.compress(b'{"text": "one"}\n')),
        ("a.json.txt", b"one"), ("one", b"one"),
    ],
)  # fmt: skip
def test_names_in_other_letters_are_the_same_kinds_of_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert list(read_documents([tmp_path / name])) == ["one"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "A.ZST", "a.bz2", "a.txt.xz", "a.parquet.gz", "a.zip"])
def test_compressed_files_that_are_not_read_are_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x28\xb5\x2f\xfd")
    suffix = re.escape(Path(name).suffix.lower())
    for read in (lambda: FileDocuments([tmp_path / name]), lambda: list(read_documents([tmp_path / name]))):
        with pytest.raises(
            ValueError, match=rf"{re.escape(name)}: {suffix} is not read; decompress it, or give \.jsonl\.gz"
        ):
            read()


@pytest.mark.parametrize("name", ["a.json", "A.JSON", "a.json.gz", "a.csv", "b.a.csv.gz", "a.tsv"])
def test_a_table_is_refused_with_what_to_give_instead(data: Path, tmp_path: Path, name: str) -> None:
    """It was one document, brackets and all. `prepare` refuses it before it reads the files before it."""
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    (tmp_path / name).write_bytes(b'[{"text": "one"}]')
    wanted = rf"{name}: \.[a-z]+ is not read.*\.jsonl.*\.txt"
    with pytest.raises(ValueError, match=wanted):
        list(read_documents([tmp_path / name]))
    with pytest.raises(ValueError, match=wanted):
        prepare([tmp_path / "bad.txt"], [tmp_path / name], tmp_path / "out", str(data / "tokenizer.tiktoken"))


def test_a_byte_order_mark_is_no_text(data: Path, tmp_path: Path) -> None:
    """Before the first line, before a later one where files were joined, and before a text."""
    mark = b"\xef\xbb\xbf"
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(mark + b'{"text": "one"}\n' + mark + b'{"text": "two"}\n')
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(mark + b'{"text": "three"}\n'))
    plain = tmp_path / "c.txt"
    plain.write_bytes(mark + b"four")
    prepare([lines, packed, plain], [plain], tmp_path / "out", str(data / "tokenizer.tiktoken"))
    assert documents_of(tmp_path / "out", "train") == ["one", "two", "three", "four"]


def test_a_word_without_end_and_an_endless_gap_are_prepared(tmp_path: Path) -> None:
    """A vocabulary learns of the beginning of the word; a token file has all of both."""
    texts = ["".join(random.Random(0).choices("abcdefgh", k=1_000_000)), "gap" + " " * 2_000_000 + "gap", *TEXTS]
    source = write_json_lines(tmp_path / "a.jsonl", texts)
    prepare([source], [source], tmp_path / "out", VOCAB)
    assert documents_of(tmp_path / "out", "train") == texts


@pytest.mark.parametrize(("size", "reason"), [(257, "at least 258"), (100_000, "more than this text can fill")])
def test_a_vocabulary_that_cannot_be_is_refused(tmp_path: Path, size: int, reason: str) -> None:
    source = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(ValueError, match=reason):
        prepare([source], [source], tmp_path / "out", size)


def test_a_truncated_token_file_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text((data / "index.json").read_text())
    (tmp_path / "val.bin").write_bytes((data / "val.bin").read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"val\.bin holds \d+ tokens where index\.json says"):
        read_tokens(tmp_path, "val")


LEARNER = train_byte_pairs([*TEXTS, "naïve café — 東京 №５ 😀😀 \r\n\t it's they'll"], 400)
RANKS = tiktoken_ranks(LEARNER)
BYTES = _printable_bytes()
TOKENIZER = Tokenizer({token: rank for rank, token in enumerate(RANKS)}, "test")


@given(st.text() | st.lists(st.sampled_from([*SUBJECTS, *VERBS, " ", "\n", "é", "😀", "'s"])).map("".join))
def test_tiktoken_cuts_text_as_the_trained_vocabulary_does(text: str) -> None:
    learnt = [bytes(BYTES[c] for c in token) for token in LEARNER.encode(text).tokens]
    assert [TOKENIZER.token_bytes(i) for i in TOKENIZER.encode(text)] == learnt
    assert b"".join(learnt) == text.encode()


def test_the_ranks_are_all_bytes_and_then_the_merges() -> None:
    assert RANKS[:256] == [bytes([b]) for b in range(256)]
    assert len(RANKS) == len(set(RANKS)) > 300
    for rank in range(256, len(RANKS)):
        cuts = [(RANKS[rank][:i], RANKS[rank][i:]) for i in range(1, len(RANKS[rank]))]
        assert any(left in RANKS[:rank] and right in RANKS[:rank] for left, right in cuts)
