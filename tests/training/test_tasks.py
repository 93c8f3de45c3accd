"""Published files as they are written, and what cannot be read or scored."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.training.harness import MODEL, VOCAB
from thoughtbubbles.model import Thoughtbubbles, Tokenizer, save_checkpoint
from thoughtbubbles.model.generate import generate
from thoughtbubbles.training.__main__ import main
from thoughtbubbles.training.measures import Likelihood
from thoughtbubbles.training.tasks import formats
from thoughtbubbles.training.tasks.choices import Answer, encode_pair, summarise
from thoughtbubbles.training.tasks.formats import Question
from thoughtbubbles.training.tasks.greedy import continue_greedily

EVALS = Path(__file__).parents[3] / "shared" / "evals"


@pytest.fixture
def uniform(data: Path, tmp_path: Path) -> Path:
    """A checkpoint that finds every token equally likely."""
    model = Thoughtbubbles(MODEL)
    torch.nn.init.zeros_(model.transformer.wte.weight)
    save_checkpoint(tmp_path / "uniform", model, Tokenizer.from_file(data / "tokenizer.tiktoken"), {})
    return tmp_path / "uniform"


def write(path: Path, *records: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_lambada_is_read_from_json_lines_and_from_the_authors_plain_text(tmp_path: Path) -> None:
    text = "he had not seen the sea"
    (tmp_path / "test.txt").write_text(f"{text}\n\n{text}\n")
    (question,) = formats.lambada(write(tmp_path / "test.jsonl", {"text": text}))
    assert question == Question(context="he had not seen the", choices=("sea",))
    assert list(formats.lambada(tmp_path / "test.txt")) == [question, question]


def test_piqa_takes_its_labels_from_the_file_beside(tmp_path: Path) -> None:
    pair: dict[str, object] = {"goal": "g", "sol1": "a", "sol2": "b"}
    (tmp_path / "valid-labels.lst").write_text("1\n0\n")
    assert [question.gold for question in formats.piqa(write(tmp_path / "valid.jsonl", pair, pair))] == [1, 0]
    with pytest.raises(ValueError, match=r"other.jsonl:1: needs a field 'label'"):
        list(formats.piqa(write(tmp_path / "other.jsonl", pair)))


def test_openbookqa_is_read_from_its_three_formats(tmp_path: Path) -> None:
    letters = [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]
    file = write(
        tmp_path / "test.jsonl",
        {"question": {"stem": "s", "choices": letters}, "answerKey": "B"},
        {"question_stem": "s", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "s", "choices": ["a", "b"], "label": 1},
    )
    assert list(formats.openbookqa(file)) == [Question(context="s", choices=("a", "b"), gold=1)] * 3
    with pytest.raises(ValueError, match="answerKey"):
        list(formats.openbookqa(write(file, {"question": {"stem": "s", "choices": letters}, "answerKey": "C"})))


LETTERS = [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]
COLUMNS = {"text": ["a", "b"], "label": ["A", "B"]}


@pytest.mark.parametrize(
    ("read", "record", "reason"),
    [
        (formats.piqa, {"goal": "g", "sol1": "a", "sol2": "b", "label": 2}, "label is 2, .* numbered from 0 to 1"),
        (formats.hellaswag, {"endings": ["a", "b"], "label": "4"}, "label is 4, .* numbered from 0 to 1"),
        (formats.openbookqa, {"question": "s", "choices": ["a"], "label": 1}, "label is 1, .* numbered from 0 to 0"),
        (formats.hellaswag, {"endings": [], "label": 0}, "needs a field 'endings', a list of texts"),
        (formats.hellaswag, {"endings": ["a", 2], "label": 0}, "needs a field 'endings', a list of texts"),
        (formats.openbookqa, {"question": "s", "choices": [1, 2], "label": 0}, "needs a field 'choices', a list of"),
        (formats.openbookqa, {"question": {"stem": "s", "choices": ["a"]}, "answerKey": "A"}, "not an object"),
        (formats.openbookqa, {"question": {"stem": "s", "choices": [{"text": "a"}]}, "answerKey": "A"}, "'label'"),
        (formats.openbookqa, {"question": {"stem": 1, "choices": LETTERS}, "answerKey": "A"}, "'stem'"),
        (
            formats.openbookqa,
            {"question_stem": "s", "choices": {"text": ["a"]}, "answerKey": "A"},
            "'label' of type list",
        ),
        (formats.openbookqa, {"question_stem": "s", "choices": {**COLUMNS, "text": ["a"]}, "answerKey": "B"}, "names"),
        (formats.openbookqa, {"question_stem": "s", "choices": COLUMNS, "answerKey": "C"}, "names"),
    ],
)
def test_a_question_that_cannot_be_answered_is_named_by_file_and_line(
    read: formats.Reader, record: dict[str, object], reason: str, tmp_path: Path
) -> None:
    scene = {"activity_label": "x", "ctx_a": "a", "ctx_b": "b"}
    with pytest.raises(ValueError, match=rf"test\.jsonl:1: .*{reason}"):
        list(read(write(tmp_path / "test.jsonl", {**scene, **record})))


def test_the_metrics_by_hand() -> None:
    """The sum prefers the short choice, characters the long one, bytes the one without umlauts."""
    question = Question(context="c", choices=("ab", "abcdef", "üüüü"), gold=1)
    answer = Answer(question, (Likelihood(4.0, False), Likelihood(9.0, False), Likelihood(8.0, False)))
    assert [answer.metric(name) for name in ("acc", "acc_norm", "acc_bytes")] == [0.0, 1.0, 0.0]
    right = Answer(Question(context="c", choices=("a",)), (Likelihood(1.0, True),))
    wrong = Answer(Question(context="c", choices=("a",)), (Likelihood(3.0, False),))
    summary = summarise([right, wrong], ("acc", "perplexity"))
    assert summary == pytest.approx({"acc": 0.5, "acc_stderr": 0.5, "perplexity": math.exp(2)})
    diverged = Answer(Question(context="c", choices=("a",)), (Likelihood(800.0, False),))
    assert summarise([diverged], ("perplexity",)) == {"perplexity": math.inf}


def test_the_space_before_a_continuation_belongs_to_it(data: Path) -> None:
    tokenizer = Tokenizer.from_file(data / "tokenizer.tiktoken")
    for context, continuation in (("the cat", " sleeps"), ("the cat ", "sleeps")):
        before, after = encode_pair(tokenizer, context, continuation)
        assert (tokenizer.decode(before), tokenizer.decode(after)) == ("the cat", " sleeps")
    assert encode_pair(tokenizer, "", " cat")[0] == [tokenizer.end_of_text]


def test_greedy_continuations_in_a_batch_are_those_of_each_alone() -> None:
    torch.manual_seed(2)
    model = Thoughtbubbles(MODEL).eval()
    prompts = [[1, 2, 3], [7], [9, 9, 9, 9, 9, 4]]
    made = continue_greedily(
        model, prompts, 6, lambda tokens: len(tokens) == 4 and tokens[0] % 2 == 0, vocabulary=VOCAB, rule="causal"
    )
    for prompt, tokens in zip(prompts, made, strict=True):
        assert len(tokens) == (4 if tokens[0] % 2 == 0 else 6)
        assert tokens == generate(model, prompt, len(tokens), temperature=0)


def test_a_greedy_continuation_has_no_id_that_only_pads_the_embedding() -> None:
    model = Thoughtbubbles(MODEL).eval()
    with torch.no_grad():
        model.transformer.ln_f.bias += 100 * model.transformer.wte.weight[VOCAB - 1]  # the likeliest everywhere
    best = int(model(torch.tensor([[1, 2]]))[0, -1, : VOCAB - 1].argmax())
    for vocabulary, expected in ((VOCAB, VOCAB - 1), (VOCAB - 1, best)):
        made = continue_greedily(model, [[1, 2]], 1, lambda _: False, vocabulary=vocabulary, rule="causal")
        assert made == [[expected]]


def test_the_command_scores_sets_by_their_names(
    uniform: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write(
        tmp_path / "pairs.jsonl",
        {"task": "simple", "prefix": "The cat ", "good": "is", "bad": "are not"},
        {"task": "far", "prefix": "The cats ", "good": "are not", "bad": "is"},
    )
    passage = write(tmp_path / "passages.jsonl", {"text": "the cat is"})
    problem = write(tmp_path / "test.jsonl", {"question": "3 + 4", "answer": "#### 7"})
    tasks = ["--task", "agreement", str(pairs), "--task", "lambada", str(passage), "--task", "gsm8k", str(problem)]
    options = ["--rules", "causal", "--shots", "1", str(problem), "--json"]
    assert main(["evaluate", str(uniform), *tasks, *options]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {(row["task"], row["subset"]): row for row in rows}
    assert [found["agreement", subset]["acc"] for subset in ("simple", "far", "")] == [1, 0, 0.5]  # the shorter wins
    tokens = math.log(found["lambada", ""]["perplexity"]) / math.log(VOCAB)
    assert tokens == pytest.approx(round(tokens))
    assert found["gsm8k", ""]["exact_match_strict"] == 0


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "data: nothing to evaluate on"),
        (["--task", "squad", "x.jsonl"], "task must be one of lambada"),
        (["--task", "blimp"], "no questions in"),
        (["--task", "blimp", "x.jsonl", "--limit", "-1"], "limit must be at least 1"),
        (["--task", "gsm8k", "x.jsonl", "--shots", "few", "y"], "shots: 'few'"),
    ],
)
def test_what_cannot_be_scored_is_told_in_one_line(
    flags: list[str], reason: str, uniform: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(uniform), *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: {reason}")


def test_lines_end_at_line_breaks_alone_and_one_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "passages.txt"
    path.write_bytes("the cat\N{LINE SEPARATOR}is\r\nthe cat\x85 sleeps\n\n".encode())
    assert [question.choices for question in formats.lambada(path)] == [("cat\N{LINE SEPARATOR}is",), ("sleeps",)]
    path.write_bytes(b"\xef\xbb\xbfcat is")
    assert [question.context for question in formats.lambada(path)] == ["cat"]
    path.write_bytes(b"the cat is\nthe \xff is\n")
    with pytest.raises(ValueError, match=r"passages\.txt:2: .*utf-8"):
        list(formats.lambada(path))


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [("piqa", "piqa", 1500), ("openbookqa", "openbookqa", 500), ("agreement", "subject_verb_agreement", 7099)],
)
def test_the_shared_sets_are_read_whole(name: str, file: str, count: int) -> None:
    path = EVALS / f"{file}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    questions = list(getattr(formats, name)(path))
    assert len(questions) == count
    assert all(question.gold < len(question.choices) for question in questions)
