"""Our scores of published sets are lm-evaluation-harness's own, over the harness's own task files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.harness import MODEL
from thoughtbubbles.model import Checkpoint, Thoughtbubbles, Tokenizer
from thoughtbubbles.training.tasks import formats, gsm8k
from thoughtbubbles.training.tasks.choices import answer
from thoughtbubbles.training.tasks.evaluation import Settings, evaluate_task
from thoughtbubbles.training.tasks.formats import Reader

pytest.importorskip("lm_eval", reason="lm-eval is in the extra `test`")

SETS: dict[str, tuple[str, list[dict[str, object]]]] = {
    "lambada": ("lambada/lambada_openai.yaml", [
        {"text": "the cat forks the old house. nobody remembers the cat"},
        {"text": "a thought follows every token, and a bubble sleeps on a thought"},
    ]),
    "hellaswag": ("hellaswag/hellaswag.yaml", [
        {"activity_label": "Cats", "ctx_a": "The cat sleeps.", "ctx_b": "then the cat", "label": "1",
         "endings": ["follows nobody. [title] So", "[step]  forks", "is not a long, long sleeper", "sleeps on"]},
        {"activity_label": "Bubbles", "ctx_a": "A bubble [header] Here", "ctx_b": "", "label": "3",
         "endings": ["forks", "follows", "remembers the old house", "is not"]},
    ]),
    "piqa": ("piqa/piqa.yaml", [
        {"goal": "the cat sleeps", "sol1": "on the old house that nobody remembers", "sol2": "never", "label": 0},
        {"goal": "every token", "sol1": "forks", "sol2": "follows a thought, as a thought does", "label": 1},
        {"goal": "nobody", "sol1": "…", "sol2": "remembers a bubble", "label": 1},
    ]),
    "openbookqa": ("openbookqa/openbookqa.yaml", [
        {"question_stem": "The cat", "choices": {"text": ["sleeps", "is not a house", "forks", "…"],
                                                 "label": ["A", "B", "C", "D"]}, "answerKey": "B"},
        {"question_stem": "A token that", "choices": {"text": ["forks nobody", "follows", "is", "the old house"],
                                                      "label": ["A", "B", "C", "D"]}, "answerKey": "A"},
    ]),
    "blimp": ("blimp/_template_yaml", [
        {"sentence_good": "The cat sleeps.", "sentence_bad": "The cat sleep.", "UID": "agreement"},
        {"sentence_good": "Nobody follow a bubble.", "sentence_bad": "Nobody follows a bubble.", "UID": "agreement"},
    ]),
}  # fmt: skip
PROBLEMS = [
    gsm8k.Problem("Nobody has 3 cats and gets 1,000 more. How many?", "3+1000=<<3+1000=1003>>1003\n#### 1,003"),
    gsm8k.Problem("A house is sold for $20. For how much?", "It says so.\n#### 20"),
]
GENERATED = [
    " Nobody has 1003.\n#### 1003\n\nQuestion: 7",
    " about 1,003 cats",
    " #### 20.",
    " it is $20.",
    " -20",
    "",
    "#### 3 or 1003",
]


@pytest.fixture(scope="module")
def checkpoint(data: Path) -> Checkpoint:
    """Weights several times as large as training starts with, so that choices differ."""
    torch.manual_seed(3)
    model = Thoughtbubbles(MODEL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0)
    tokenizer = Tokenizer.from_file(data / "tokenizer.tiktoken")
    return Checkpoint(model=model, tokenizer=tokenizer, provenance={})


def harness_task(yaml: str, file: Path, cache: Path) -> dict[str, Any]:
    """Return one of the harness's own task files, which reads `file` instead of a download."""
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    task = dict(load_yaml(Path(lm_eval.tasks.__file__).parent / yaml, resolve_func=True))
    for name in ("tag", "dataset_name", "training_split", "validation_split", "fewshot_split"):
        task.pop(name, None)
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(cache)}}
    return {**task, **source, "task": "local", "test_split": "test", "num_fewshot": 0}


def harness(checkpoint: Checkpoint, task: dict[str, Any], generated: list[str]) -> dict[str, Any]:
    """What the harness makes of `task`, the model being one forward for each request; it writes `generated`."""
    import lm_eval
    from lm_eval.api.model import TemplateLM
    from lm_eval.tasks import TaskManager

    prompts: list[str] = []

    class OneForward(TemplateLM):
        """Knows nothing of windows or batches."""

        @property
        def eot_token_id(self) -> int:
            return checkpoint.tokenizer.end_of_text

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
            return checkpoint.tokenizer.encode(string)

        def _loglikelihood_tokens(self, requests: list[Any], **kwargs: object) -> list[tuple[float, bool]]:
            return [self._score(context, continuation) for _, context, continuation in requests]

        def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
            ids = torch.tensor([[*context, *continuation][-MODEL.block_size - 1 :]])
            with torch.inference_mode():
                logs = checkpoint.model(ids[:, :-1], rule="causal")[0, -len(continuation) :].log_softmax(-1)
            wanted = torch.tensor(continuation)
            return logs.gather(1, wanted[:, None]).sum().item(), bool((logs.argmax(-1) == wanted).all())

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            raise NotImplementedError

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            prompts.extend(request.args[0] for request in requests)
            assert {tuple(request.args[1]["until"]) for request in requests} == {gsm8k.STOPS}
            return [gsm8k.cut(text) for text in generated]

    manager = TaskManager(include_defaults=False)
    told = lm_eval.simple_evaluate(model=OneForward(), tasks=[task], bootstrap_iters=100, task_manager=manager)
    samples = [[reply for (reply,) in sample["resps"]] for sample in told["samples"]["local"]]
    return {"prompts": prompts, "samples": samples, **told["results"]["local"]}


def write(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.numeric
@pytest.mark.parametrize("name", SETS)
def test_our_scores_are_the_harness_s(
    name: str, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    yaml, records = SETS[name]
    read: Reader = getattr(formats, name)
    file = write(tmp_path / "set.jsonl", records)
    told = harness(checkpoint, harness_task(yaml, file, tmp_path), [])
    for ours, replies in zip(answer(checkpoint, list(read(file)), "causal", 3), told["samples"], strict=True):
        assert [-each.nats for each in ours.likelihoods] == pytest.approx([ll for ll, _ in replies], rel=1e-4)
        assert [each.greedy for each in ours.likelihoods] == [greedy for _, greedy in replies]
    outcome = list(evaluate_task(checkpoint, name, [file], Settings(rule="causal", batch_size=3)))[-1]
    assert outcome.questions == len(records)
    compared = {metric for metric in outcome.metrics if f"{metric},none" in told}
    assert compared >= {"acc", "acc_stderr"}
    for metric in compared:
        assert outcome.metrics[metric] == pytest.approx(told[f"{metric},none"], rel=1e-4), metric


def test_gsm8k_is_asked_and_judged_as_the_harness_does(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    problems = [PROBLEMS[i] for i in (0, 0, 1, 1, 1, 1, 0)]
    file = write(tmp_path / "test.jsonl", [{"question": each.question, "answer": each.answer} for each in problems])
    told = harness(checkpoint, harness_task("gsm8k/gsm8k.yaml", file, tmp_path), GENERATED)
    ours = gsm8k.score(problems, [gsm8k.cut(text) for text in GENERATED])
    assert [gsm8k.prompt(problem) for problem in problems] == told["prompts"]
    assert ours["exact_match_strict"] == pytest.approx(told["exact_match,strict-match"])
    assert ours["exact_match_flexible"] == pytest.approx(told["exact_match,flexible-extract"])
    assert 0 < ours["exact_match_strict"] < ours["exact_match_flexible"] < 1
