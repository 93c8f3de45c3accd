"""Mixtures: every set has its share, every window is what its form says, and everything depends on its number alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.harness import HELD_OUT, MODEL, TEXTS, VOCAB, write_json_lines
from thoughtbubbles.model import Tokenizer
from thoughtbubbles.training.data.corpus import Corpus
from thoughtbubbles.training.data.loader import PADDING, DocumentLoader, Loader, WindowLoader, document_cuts
from thoughtbubbles.training.data.mixture import BLOCK, Mixture, MixtureSet, read_mixture, whole_shares
from thoughtbubbles.training.data.prepare import prepare
from thoughtbubbles.training.measures import negative_log_likelihood

LENGTH = MODEL.block_size


class Numbers(Loader):
    """Windows that say whose they are and which."""

    def __init__(self, name: int) -> None:
        self.name = name

    def window(self, index: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array([self.name, index])


@pytest.fixture(scope="module")
def folders(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`web` and `sums`, two prepared folders of one tokenizer; `other`, of another."""
    root = tmp_path_factory.mktemp("mixture")
    sums = [f"{a} and {b} is {a + b}." for a in range(12) for b in range(12)]
    sources = [write_json_lines(root / f"{i}.jsonl", t) for i, t in enumerate((TEXTS, HELD_OUT, sums, sums[::9]))]
    prepare(sources[:1], sources[1:2], root / "web", str(data / "tokenizer.tiktoken"))
    prepare(sources[2:3], sources[3:], root / "sums", str(data / "tokenizer.tiktoken"))
    prepare(sources[:1], sources[1:2], root / "other", VOCAB - 1)
    return root


def mixture(folders: Path, **sets: str) -> Path:
    path = folders / "mixture.toml"
    path.write_text("".join(f"[sets.{name}]\n{table}\n" for name, table in sets.items()), encoding="utf-8")
    return path


@pytest.fixture
def both(folders: Path) -> Path:
    return mixture(folders, web='data = "web"\nweight = 3', sums='data = "sums"\nweight = 1.0\nform = "padded"')


def test_each_set_has_its_share_and_gives_its_windows_in_order() -> None:
    """Shares hold exactly over a block, and about so over any stretch of it."""
    stream = Mixture([Numbers(0), Numbers(1), Numbers(2)], [0.5, 0.2, 0.3], seed=3)
    windows = np.array([stream.window(index) for index in range(2 * BLOCK)])
    for name, share in enumerate((0.5, 0.2, 0.3)):
        mine = windows[:, 0] == name
        assert windows[mine, 1].tolist() == list(range(int(2 * BLOCK * share)))
        assert mine[:BLOCK].sum() == BLOCK * share
        assert np.abs(mine.reshape(20, -1).mean(1) - share).max() < 0.07
    assert (windows[:BLOCK, 0] != windows[BLOCK:, 0]).any()


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9), st.integers(1, 10_000))
def test_whole_shares_add_up_and_miss_by_less_than_one(weights: Sequence[float], total: int) -> None:
    shares = whole_shares(weights, total)
    assert shares.sum() == total
    assert np.abs(shares - np.array(weights) * total / sum(weights)).max() < 1 + 1e-6


def test_a_weight_without_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^weight: 1e-06 of 1\.000001 is less than one window in 10000"):
        Mixture([Numbers(0), Numbers(1)], [1.0, 1e-6], seed=0)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
def test_any_number_of_ranks_shares_the_same_batches_from_any_step(both: Path, ranks: int) -> None:
    """Each rank opens the data itself and reads its own part, of steps in any order."""
    whole = Corpus.open(both, LENGTH, seed=5).loader
    opened = [Corpus.open(both, LENGTH, seed=5).loader for _ in range(ranks)]
    for step in (7, 0, 3000):
        parts = [loader.batch(step * ranks + rank, 12 // ranks) for rank, loader in enumerate(opened)]
        assert torch.equal(torch.cat(parts), whole.batch(step, 12))


def test_another_seed_is_another_order(both: Path) -> None:
    one, other = (Corpus.open(both, LENGTH, seed).loader.batch(0, 24) for seed in (1, 2))
    assert not torch.equal(one, other)


def test_padded_windows_are_whole_documents_and_packed_ones_are_full(folders: Path, both: Path) -> None:
    tokenizer = Tokenizer.from_file(folders / "sums" / "tokenizer.tiktoken")
    corpus = Corpus.open(both, LENGTH, seed=0)
    rows = corpus.loader.batch(0, 400)
    padded = rows[(rows == PADDING).any(1)]
    assert corpus.padded
    assert 0.15 < len(padded) / 400 < 0.35
    for row in padded:
        ids = row[row != PADDING].tolist()
        assert row.tolist() == ids + [PADDING] * (LENGTH + 1 - len(ids))
        last = tokenizer.decode(ids[1:]) == "11 and 11 is 22."  # nothing follows it in the file
        assert (ids[0] == tokenizer.end_of_text, ids[-1] == tokenizer.end_of_text) == (True, not last)
        a, b, total = (
            tokenizer.decode(ids[1 : None if last else -1]).removesuffix(".").replace(" is ", " and ").split(" and ")
        )
        assert int(a) + int(b) == int(total)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 5))
def test_document_cuts_take_every_target_once(lengths: Sequence[int], length: int) -> None:
    """The end-of-text that ends a document is a target of it; the last document has none to end it."""
    ids = np.array([i for n in lengths for i in (0, *[1] * n)], dtype=np.uint16)
    cuts = document_cuts(ids, length, 0)
    targets = [i for start, end in cuts for i in range(start + 1, end)]
    assert targets == list(range(1, len(ids)))
    assert all(1 < end - start <= length + 1 for start, end in cuts)
    for start, end in cuts:
        assert 0 not in ids[start + 1 : end - 1]


def test_a_pass_over_documents_takes_each_once_in_an_order_of_its_own() -> None:
    ids = np.array([0, 5, 0, 6, 0, 7, 0, 8, 0], dtype=np.uint16)
    loader = DocumentLoader(ids, 4, 0, end_of_text=0)
    passes = [[int(loader.window(n * 4 + i)[1]) for i in range(4)] for n in range(9)]
    assert {tuple(sorted(each)) for each in passes} == {(5, 6, 7, 8)}
    assert len({tuple(each) for each in passes}) > 3
    with pytest.raises(ValueError, match="no document"):
        DocumentLoader(ids[:1], 4, 0, end_of_text=0)


def test_validation_is_of_each_set_in_its_own_form(both: Path, folders: Path) -> None:
    from thoughtbubbles.model import Thoughtbubbles

    corpus = Corpus.open(both, LENGTH, seed=0)
    assert corpus.weights == {"sums": 0.25, "web": 0.75}
    assert list(corpus.validation) == ["sums", "web"]
    assert len(corpus.validation["sums"]) == 16  # a window for each document
    alone = Corpus.open(folders / "web", LENGTH, seed=0)
    assert [w.ids.tolist() for w in corpus.validation["web"]] == [w.ids.tolist() for w in alone.validation["val"]]
    assert negative_log_likelihood(Thoughtbubbles(MODEL), corpus.validation["sums"], "blockwise", 4) > 0


def test_a_folder_alone_is_what_it_always_was(folders: Path) -> None:
    corpus = Corpus.open(folders / "web", LENGTH, seed=4)
    ids = np.fromfile(folders / "web" / "train.bin", dtype=np.uint16)
    assert torch.equal(corpus.loader.batch(3, 8), WindowLoader(ids, LENGTH, 4).batch(3, 8))
    assert corpus.facts["train"]["tokens"] == len(ids)
    assert (corpus.vocab_size, corpus.tokenizer.vocab_size, corpus.padded) == (VOCAB, VOCAB, False)


def test_facts_tell_weights_forms_and_what_was_read(both: Path) -> None:
    facts = Corpus.open(both, LENGTH, seed=0).facts
    assert facts["weights"] == {"web": 3, "sums": 1.0}
    assert facts["forms"] == {"web": "packed", "sums": "padded"}
    assert facts["sets"]["web"]["train"]["documents"] == len(TEXTS)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("weight = 1", r"\[sets.a\] needs data, a folder, and weight"),
        ('data = "web"', r"\[sets.a\] needs data, a folder, and weight"),
        ('data = "web"\nweight = 0', r"\[sets.a\]: weight must be a finite number above 0, not 0"),
        ('data = "web"\nweight = "x"', r"\[sets.a\]: weight must be a finite number above 0, not 'x'"),
        ('data = "web"\nweight = inf', r"\[sets.a\]: weight must be a finite number above 0, not inf"),
        ('data = "web"\nweight = true', r"\[sets.a\]: weight must be a finite number above 0, not True"),
        ('data = "web"\nweight = 1\nform = "loose"', r"\[sets.a\]: form must be one of"),
        ('data = "web"\nweight = 1\nwieght = 2', r"\[sets.a\]: wieght is no setting of a set"),
        ('data = "nowhere"\nweight = 1', r"nowhere has no index\.json"),
        ('data = "other"\nweight = 1\n[sets.b]\ndata = "web"\nweight = 1', "b has another tokenizer than a"),
        ("data =", "mixture.toml: "),
    ],
)
def test_what_is_wrong_with_a_mixture_is_named(folders: Path, table: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^data: .*{reason}"):
        Corpus.open(mixture(folders, a=table), LENGTH, seed=0)


def test_a_byte_order_mark_is_no_part_of_a_mixture(tmp_path: Path) -> None:
    (tmp_path / "mixture.toml").write_bytes(b'\xef\xbb\xbf[sets.a]\ndata = "web"\nweight = 1\n')
    assert read_mixture(tmp_path / "mixture.toml") == {"a": MixtureSet(data=tmp_path / "web", weight=1)}


def test_a_file_without_sets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("set = 1")
    with pytest.raises(ValueError, match=r"needs a table \[sets\.NAME\]"):
        Corpus.open(tmp_path / "empty.toml", LENGTH, seed=0)
