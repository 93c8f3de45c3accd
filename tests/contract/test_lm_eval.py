"""lm-evaluation-harness, which knows nothing of this project, scores as if it had the model in its hands."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.server.harness import Json
from thoughtbubbles.model import Checkpoint, load_checkpoint, shipped_checkpoint
from thoughtbubbles.model.generate import generate

DATA = Path(__file__).parent / "data"
EVALS = Path(__file__).parents[3] / "shared" / "evals"
MAX_LENGTH = 128
"""Of prompt and generated token; a longer text is scored in windows."""
MAX_TOKENS = 20
STOPS = ["\n\n", ".", "!", "?", ";", " and"]
DEFAULTS = {"num_concurrent": 1}
BATCHED = {"num_concurrent": 4, "batch_size": 5}

Evaluate = Callable[..., list[Json]]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """What the server serves."""
    return load_checkpoint(shipped_checkpoint())


@pytest.fixture
def evaluate(shipped_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Run one task over the documents of a file; return lm-eval's samples."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    import lm_eval
    from lm_eval.tasks import TaskManager

    def run(file: Path, *, limit: int | None = None, model_args: Json = DEFAULTS, **config: object) -> list[Json]:
        if not file.exists():
            pytest.skip(f"{file} is not there")
        task = {
            "task": "contract",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path)},
            "test_split": "test",
            **config,
        }
        told = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={"base_url": f"{shipped_url}/v1/completions", "model": "thoughtbubbles-11m",
                        "max_length": MAX_LENGTH, **model_args},
            tasks=[task], limit=limit, bootstrap_iters=0, task_manager=TaskManager(include_defaults=False),
        )  # fmt: skip
        return told["samples"]["contract"]

    return run


def score(checkpoint: Checkpoint, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Log-probability of a continuation by one forward over everything, and whether it is the greedy one."""
    with torch.inference_mode():
        logits = checkpoint.model(torch.tensor([context + continuation]), rule="causal")
    before = logits[0, len(context) - 1 : -1].log_softmax(-1)
    wanted = torch.tensor(continuation)
    return before.gather(1, wanted[:, None]).sum().item(), bool((before.argmax(1) == wanted).all())


def assert_scored(checkpoint: Checkpoint, samples: list[Json]) -> None:
    """Every choice of every document has the model's own score."""
    encode, end = checkpoint.tokenizer.encode, checkpoint.tokenizer.end_of_text
    for sample in samples:
        for (context, choice), ((told, greedy),) in zip(sample["arguments"], sample["resps"], strict=True):
            whole = encode(context + choice)
            length = len(encode(context.rstrip()))  # a space belongs to the word behind it
            ids = (whole[:length], whole[length:]) if length else ([end], whole)
            expected = score(checkpoint, *ids)
            assert (told, greedy) == (pytest.approx(expected[0], abs=1e-4), expected[1]), (context, choice)


CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
}


@pytest.mark.parametrize("model_args", [DEFAULTS, BATCHED])
def test_choices(evaluate: Evaluate, checkpoint: Checkpoint, model_args: Json) -> None:
    samples = evaluate(DATA / "choices.jsonl", model_args=model_args, **CHOICES)
    assert [len(sample["resps"]) for sample in samples] == [4, 3, 3, 3, 2, 2]
    assert_scored(checkpoint, samples)


@pytest.mark.parametrize(
    ("file", "limit", "config"),
    [
        ("openbookqa.jsonl", 6, CHOICES),
        ("piqa.jsonl", 6, {**CHOICES, "doc_to_text": "{{goal}}", "doc_to_choice": "{{[sol1, sol2]}}"}),
        (
            "subject_verb_agreement.jsonl",
            12,
            {**CHOICES, "doc_to_text": "{{prefix}}", "doc_to_choice": "{{[good, bad]}}", "doc_to_target": 0},
        ),
    ],
)
def test_evaluations(evaluate: Evaluate, checkpoint: Checkpoint, file: str, limit: int, config: Json) -> None:
    samples = evaluate(EVALS / file, limit=limit, model_args=BATCHED, **config)
    assert len(samples) == limit
    assert_scored(checkpoint, samples)


def test_whole_texts(evaluate: Evaluate, checkpoint: Checkpoint) -> None:
    samples = evaluate(
        DATA / "texts.jsonl", output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )  # fmt: skip
    windows = 0
    for sample in samples:
        ids = [checkpoint.tokenizer.end_of_text, *checkpoint.tokenizer.encode(sample["doc"]["text"])]
        # lm-eval keeps one place for the generated token and one for the first context token; from its second window
        # on each reaches back so as to be as long as may be.
        step = MAX_LENGTH - 2
        expected = 0.0
        for start in range(1, len(ids), step):
            end = min(start + step, len(ids))
            context = ids[0:1] if start == 1 else ids[max(end - step - 1, 0) : start]
            expected += score(checkpoint, context, ids[start:end])[0]
            windows += 1
        ((told,),) = sample["resps"]
        assert told == pytest.approx(expected, abs=1e-4)
    assert windows > len(samples)


def test_generations(evaluate: Evaluate, checkpoint: Checkpoint) -> None:
    samples = evaluate(
        DATA / "beginnings.jsonl", output_type="generate_until", doc_to_text="{{text}}", doc_to_target="",
        generation_kwargs={"until": STOPS, "max_gen_toks": MAX_TOKENS, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )  # fmt: skip
    assert len(samples) == 4
    for sample in samples:
        ids = checkpoint.tokenizer.encode(sample["doc"]["text"])
        end = checkpoint.tokenizer.end_of_text
        made = generate(checkpoint.model, ids, MAX_TOKENS, temperature=0, end_of_text=end)
        text = checkpoint.tokenizer.decode([token for token in made if token != end])
        cut = min((text.index(stop) for stop in STOPS if stop in text), default=len(text))
        assert sample["resps"] == [[text[:cut]]]
