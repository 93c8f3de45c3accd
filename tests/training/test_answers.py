"""Learning answers alone: what a question is, that its tokens are read and never learned, right to the boundaries."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.training.harness import MODEL, QUIET, TEXTS, never, stop_after, write_json_lines
from thoughtbubbles.model import ChatTemplate, Thoughtbubbles, Tokenizer
from thoughtbubbles.training.data import encoding
from thoughtbubbles.training.data.corpus import Corpus
from thoughtbubbles.training.data.corpus_writer import CorpusWriter
from thoughtbubbles.training.data.documents import Documents, FileDocuments
from thoughtbubbles.training.data.loader import PADDING, DocumentLoader, as_prompt, inputs, targets
from thoughtbubbles.training.data.prepare import prepare
from thoughtbubbles.training.data.progress import Progress
from thoughtbubbles.training.data.prompt_mask import read_prompt_mask
from thoughtbubbles.training.data.rows import conversation, multiple_choice, worked_answer
from thoughtbubbles.training.data.token_file import Index
from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.measures import Window
from thoughtbubbles.training.step import TrainStep, next_token_loss
from thoughtbubbles.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
CPU = Ranks(device=torch.device("cpu"))
LENGTH = MODEL.block_size
LEARN = 'form = "padded"\nlearn = "answers"\n'


def said(*turns: tuple[str, str]) -> dict[str, Any]:
    """A row of a conversation set: who says what."""
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


TALK = said(("system", "Be kind."), ("user", "the cat?"), ("assistant", " It forks.\n"), ("user", "Why?"),
            ("assistant", "a bubble…"))  # fmt: skip
TALKS = [said(("user", text[:9]), ("assistant", text[9 : 12 + i % 30])) for i, text in enumerate(TEXTS[:120])]


def write_talks(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(data: Path) -> Path:
    return data / "tokenizer.tiktoken"


@pytest.fixture(scope="module")
def mixture(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations of which the answers are learned, and plain text."""
    folder = tmp_path_factory.mktemp("answers")
    talks, plain = write_talks(folder / "talks.jsonl", TALKS), write_json_lines(folder / "plain.jsonl", TEXTS[120:])
    prepare([talks], [talks], folder / "talks", str(tokenizer))
    prepare([plain], [plain], folder / "plain", str(tokenizer))
    sets = f'[sets.talks]\ndata = "talks"\nweight = 2\n{LEARN}[sets.plain]\ndata = "plain"\nweight = 1\n'
    (folder / "mixture.toml").write_text(sets)
    return folder / "mixture.toml"


def test_what_the_assistant_says_and_how_it_ends_is_learned() -> None:
    document = conversation(TALK)
    assert list(document.pieces()) == [
        ("", False),
        ("System: Be kind.\n\nUser: the cat?\n\nAssistant:", True),
        (" It forks.\n\nUser:", False),
        (" Why?\n\nAssistant:", True),
        (" a bubble…", False),
    ]
    assert "".join(text for text, _ in document.pieces()) == document.text


def test_the_chat_template_of_the_documentation_asks_as_was_learned(tokenizer: Path) -> None:
    [template] = re.findall(r"```jinja\n(.*?)```", (ROOT / "docs" / "TRAINING.md").read_text(), re.DOTALL)
    document, read = conversation(TALK), Tokenizer.from_file(tokenizer)
    asked = ChatTemplate(template).encode(TALK["messages"][:-1], read)
    assert asked == [read.end_of_text, *read.encode(document.text[: document.prompts[-1][1]])]


def test_of_questions_the_answer_is_learned() -> None:
    summed = worked_answer({"question": "2 and 3?", "steps": ["<<2+3=5>>"], "answer": "5"})
    chosen = multiple_choice({"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2})
    assert [text for text, prompt in summed.pieces() if not prompt] == ["", " <<2+3=5>>\n#### 5"]
    assert [text for text, prompt in chosen.pieces() if not prompt] == ["", " C"]


def test_tokens_are_those_of_the_whole_text(tokenizer: Path) -> None:
    """So that a set is the same tokens, learned whole or not."""
    read = Tokenizer.from_file(tokenizer)
    for document in (conversation(TALK), *map(conversation, TALKS)):
        assert [i for text, _ in document.pieces() for i in read.encode(text)] == read.encode(document.text)


def test_windows_have_all_as_inputs_and_answers_as_targets(mixture: Path, tokenizer: Path) -> None:
    read = Tokenizer.from_file(tokenizer)
    ids = np.fromfile(mixture.parent / "talks" / "train.bin", dtype=np.uint16)
    given = np.fromfile(mixture.parent / "talks" / "train.given.bin", dtype=np.uint8)
    loader = DocumentLoader(ids, 64, 0, read.end_of_text, given)
    seen = set()
    for row in loader.batch(0, len(TALKS)):
        ids, expected = inputs(row[:-1]), targets(row[1:])
        shown, learned = ids[: int((row[:-1] != PADDING).sum())].tolist(), expected[expected != PADDING].tolist()
        text = read.decode(shown[1:]).removesuffix("<|endoftext|>")
        question, answer = text.split("\n\nAssistant:")
        ends = learned[-1] == read.end_of_text  # the last document of the file has none to end it
        assert read.decode(learned[:-1] if ends else learned).strip() == answer.strip()
        seen.add(question)
    assert len(seen) == len({row["messages"][0]["content"].strip() for row in TALKS})


def test_every_answer_is_a_target_once_however_long_its_question() -> None:
    """And a window of nothing but a question is none."""
    ids = np.array([0, *range(1, 12), 0, 20, 21, 0], dtype=np.uint16)
    given = np.array([0, *[1] * 9, 0, 0, 0, 1, 0, 0], dtype=np.uint8)  # of the first, 10 and 11 are the answer
    loader = DocumentLoader(ids, 4, 0, end_of_text=0, prompt=given)
    rows = loader.batch(0, 2)
    found = sorted([i for i in targets(row[1:]).tolist() if i != PADDING] for row in rows)
    assert found == [[10, 11, 0], [21, 0]]
    assert sorted(inputs(row).tolist() for row in rows) == [[0, 20, 21, 0, 0], [8, 9, 10, 11, 0]]


@pytest.mark.numeric
def test_the_loss_is_the_mean_over_answers_with_questions_before_them() -> None:
    torch.manual_seed(0)
    model = Thoughtbubbles(MODEL)
    windows = torch.randint(MODEL.vocab_size, (2, LENGTH + 1))
    log_p = model(windows[:, :-1], rule="blockwise").log_softmax(-1).gather(2, windows[:, 1:, None])[..., 0]
    masked = windows.clone()
    masked[0, :9] = torch.from_numpy(as_prompt(windows[0, :9].numpy()))
    masked[1, 4:6] = torch.from_numpy(as_prompt(windows[1, 4:6].numpy()))
    expected = -torch.cat([log_p[0, 8:], log_p[1, :3], log_p[1, 5:]]).mean()
    compiled = torch.compile(next_token_loss, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(model, masked, padded=True), expected)


@pytest.mark.numeric
def test_targets_of_a_step_count_alike_in_whatever_batch() -> None:
    """A batch of few answers weighs less than one of many; the reported loss is the mean over all."""
    windows = torch.randint(MODEL.vocab_size, (2, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    windows[0, 3:] = PADDING
    moments, told = [], []
    for batches in ([windows], [windows[:1], windows[1:]]):
        torch.manual_seed(0)
        model = Thoughtbubbles(MODEL)
        learn = TrainStep(model, replace(QUIET, accumulation=len(batches)), CPU, padded=True)
        told.append(float(learn(0, batches).mean()))
        moments.append([learn.optimizers[0].state[p]["exp_avg"] for p in model.parameters()])
    assert told[0] == pytest.approx(told[1], rel=1e-5)
    torch.testing.assert_close(moments[0], moments[1])


def test_validation_counts_answers_alone(mixture: Path) -> None:
    corpus = Corpus.open(mixture, 64, seed=0)
    given = np.fromfile(mixture.parent / "talks" / "val.given.bin", dtype=np.uint8)
    assert sum(int(window.counted.sum()) for window in corpus.validation["talks"]) == int((given[1:] == 0).sum())
    window = Window(np.arange(6), 4, following=1, prompt=np.array([0, 1, 1, 0, 0, 0], dtype=np.uint8))
    assert window.counted.tolist() == [False, False, True, True, False]


def test_a_stopped_run_on_answers_goes_on_as_if_it_never_had(mixture: Path, tmp_path: Path) -> None:
    def trainer(name: str, *, resume: bool = False) -> Trainer:
        return Trainer(MODEL, QUIET, data=mixture, out=tmp_path / name, ranks=CPU, resume=resume)

    trainer("whole").run(never)
    trainer("parts").run(stop_after(3))
    trainer("parts", resume=True).run(never)
    whole, parts = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


class KilledError(Exception):
    """Stands for SIGKILL."""


def test_a_killed_preparation_tells_questions_from_answers_the_same(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain text first, which has no record of answers; then conversations, killed after their bytes were written."""
    monkeypatch.setattr(encoding, "_CHARACTERS_AT_ONCE", 500)
    plain, talks = write_json_lines(tmp_path / "a.jsonl", TEXTS), write_talks(tmp_path / "b.jsonl", TALKS)

    def write(out: str) -> Index:
        found: dict[str, Documents] = {"train": FileDocuments([plain, talks, plain])}
        return CorpusWriter(found, tmp_path / out, str(tokenizer), val_share=0.1, workers=1).write()

    left, save = [24], Progress.save

    def save_or_die(progress: Progress, folder: Path) -> None:
        left[0] -= 1
        if not left[0]:
            raise KilledError
        save(progress, folder)

    index = write("whole")
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "save", save_or_die)
        with pytest.raises(KilledError):
            write("parts")
    assert (tmp_path / "parts" / "train.given.bin").stat().st_size > 0
    assert write("parts").to_dict() == index.to_dict()
    assert index.train.given_sha256 != index.val.given_sha256 is not None
    given = np.fromfile(tmp_path / "parts" / "train.given.bin", dtype=np.uint8)
    assert len(given) == index.train.tokens
    assert 0 < given.sum() < len(given) / 2


def test_a_folder_of_conversations_is_prepared_anew(tmp_path: Path, tokenizer: Path) -> None:
    """Plain text has no prompts, and a run keeps the prompt mask that it reads."""
    talks, plain = write_talks(tmp_path / "b.jsonl", TALKS), write_json_lines(tmp_path / "a.jsonl", TEXTS)
    index = prepare([talks], [talks], tmp_path / "out", str(tokenizer))
    reading = read_prompt_mask(tmp_path / "out", "train", index.train.tokens)
    before = reading.tolist()
    assert prepare([plain], [talks], tmp_path / "out", str(tokenizer)).train.given_sha256 is None
    assert prepare([talks], [talks], tmp_path / "out", str(tokenizer)).to_dict() == index.to_dict()
    assert reading.tolist() == before


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ('data = "talks"\nlearn = "answers"', r'learn = "answers" needs form = "padded"'),
        ('data = "talks"\nlearn = "some"', "learn must be one of"),
        (f'data = "plain"\n{LEARN}', "does not tell questions from answers"),
    ],
)
def test_where_answers_cannot_be_told_the_reason_is(mixture: Path, table: str, reason: str) -> None:
    path = mixture.with_name("refused.toml")
    path.write_text(f"[sets.a]\nweight = 1\n{table}\n")
    with pytest.raises(ValueError, match=reason):
        Corpus.open(path, LENGTH, seed=0)


def test_a_turn_without_words_is_named(tmp_path: Path) -> None:
    path = write_talks(tmp_path / "talks.jsonl", [{"messages": [{"role": "user"}]}])
    with pytest.raises(ValueError, match=r"talks.jsonl:1: a document needs .* or 'messages', a list of turns"):
        list(FileDocuments([path]).read())
