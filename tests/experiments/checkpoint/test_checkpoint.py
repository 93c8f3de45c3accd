"""The study of the shipped checkpoint: its texts and splits, what it measures and keeps, its rules, its page."""

import gzip
import json
import math
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.checkpoint.arm import main as train_arm
from experiments.checkpoint.data import main as write_data
from experiments.checkpoint.decide import chosen, criteria
from experiments.checkpoint.measure import Evaluation, measure
from experiments.checkpoint.page import ARMS, DECISION, in_short, part, section
from experiments.checkpoint.present import main as measure_present
from experiments.checkpoint.ship import main as ship
from experiments.checkpoint.texts import definitions, prose, shared
from experiments.runner.plan import Study, read_study
from experiments.runner.results import read_results
from tests.experiments.harness import result
from thoughtbubbles.model import ModelConfig, Thoughtbubbles, load_checkpoint, save_checkpoint
from thoughtbubbles.training.data.token_file import Index, read_tokenizer, read_tokens
from thoughtbubbles.training.evaluate import evaluate

ROOT = Path(__file__).parents[3]
COMMITTED = ROOT / "experiments" / "checkpoint" / "study.toml"
SENTENCE = (
    "Returns the streams that survive a fork, in order of their tokens, so that a later layer"
    " reads them as they were before."
)
CODE = f'''"""{SENTENCE}

x = 1 + 2; y = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27]

Short.
"""
def f():
    """{SENTENCE.replace("streams", "bubbles")}"""
'''
ENTRY = '0000{i} 05 n 02 token_{i} 0 bubble(p) 0 001 @ 00001740 n 0000 | a definition {i}; "an example"  \n'
TINY = """
[evaluation]
report = "english"
tuning = "tuning"
other = "definitions"
code = "code"
ratios = [1, 2]

[base]
vocab_size = 320
block_size = 16
max_block_size = 32
n_layer = 2
n_head = 2
n_embd = 16
fork_layers = [1]
batch_size = 2

[arms.2l]

[sizes.rates]
data = "mixed"
rates = [1e-3]
tuning = { steps = 2, warmup_steps = 1 }
final = { steps = 2, warmup_steps = 1 }

[sizes.11m]
data = "english"
tuned_at = "rates"
final = { steps = 3, warmup_steps = 1 }

[[stages]]
size = "rates"
arms = ["2l"]
seeds = []

[[stages]]
size = "11m"
arms = ["2l"]
seeds = [0]
"""


@pytest.fixture(scope="module")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `experiments.checkpoint.data` writes of a few lines."""
    folder = tmp_path_factory.mktemp("checkpoint")
    lines = {
        "english/train": [f"the {i} bubbles of token {i} fork " * 9 for i in range(9)],
        "english/val": ["bubbles in " * 20, "forks " * 30],
        "code/train": [CODE, "not python (", CODE],
        "code/ood": ["def f(): return 1\n" * 9] * 2,
    }
    for name, texts in lines.items():
        path = folder / f"{name}.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    for end in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{end}").write_text("  1 licence\n" + "".join(ENTRY.format(i=i) for i in range(81)))
    pairs = [
        {"task": task, "prefix": "the forks ", "good": "are", "bad": "is"} for task in ("simple", "across", "simple")
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    words = ["data", f"--english={folder}/english", f"--code={folder}/code", f"--wordnet={folder}",
             f"--agreement={folder}/pairs.jsonl", f"--tokenizer={data}/english/tokenizer.tiktoken",
             f"--out={folder}/checkpoint"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        write_data()
    return folder


@pytest.fixture(scope="module")
def committed() -> Study:
    return read_study(COMMITTED, Evaluation)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


def test_prose_is_what_reads_as_english() -> None:
    assert prose(CODE) == f"{SENTENCE}\n\n{SENTENCE.replace('streams', 'bubbles')}"
    assert prose("not python (") == ""


def test_one_in_forty_definitions_are_documents(prepared: Path) -> None:
    [document] = definitions(prepared)  # four files of three
    assert document.startswith('token 0, bubble (noun): a definition 0; "an example"\ntoken 40, bubble (noun): ')
    assert document.count("\n") == 12
    assert document.endswith('token 80, bubble (adverb): a definition 80; "an example"\n')


def test_shared_counts_sequences_of_thirteen_words() -> None:
    words = [f"w{chr(97 + i)}" for i in range(14)]
    text = " ".join(words)
    assert shared([text], [text.upper().replace(" ", ", ")]) == 1
    assert shared([text], [" ".join(words[:13])]) == 0.5
    assert shared([text], [" ".join(words[:12])]) == 0
    assert shared(["too short"], [text]) == 0


def test_mixed_text_adds_the_prose_once_and_the_archive_has_all(prepared: Path, tmp_path: Path) -> None:
    out = prepared / "checkpoint"
    english, mixed = Index.read(out / "english"), Index.read(out / "mixed")
    assert mixed.train.documents == english.train.documents + 1  # of equal files one
    assert mixed.val == Index.read(out / "tuning").val
    with tarfile.open(prepared / "checkpoint.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    there = tmp_path / "checkpoint"
    assert (there / "agreement.jsonl").read_bytes() == (prepared / "pairs.jsonl").read_bytes()
    for folder in ("english", "definitions", "code", "tuning"):
        assert read_tokens(there / folder, "val").tolist() == read_tokens(out / folder, "val").tolist()
    assert len(read_tokens(there / "mixed", "train")) == mixed.train.tokens


def test_a_model_is_measured_as_evaluate_does(prepared: Path, toml: Path) -> None:
    torch.manual_seed(0)
    model = Thoughtbubbles(
        ModelConfig(vocab_size=320, block_size=16, max_block_size=32, n_layer=2, n_head=2, n_embd=16, fork_layers=(1,))
    ).eval()
    with torch.autocast("cpu", torch.bfloat16):  # which the runner measures under
        found = measure(model, prepared / "checkpoint", read_study(toml, Evaluation).evaluation)
    index = Index.read(prepared / "checkpoint" / "english")
    nats = found["loss"] * (index.val.tokens - 1)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / index.val.bytes, abs=1e-5)
    assert sum(found["documents"]) == pytest.approx(nats, abs=0.05)
    assert found["dial"]["2"] == found["loss"]
    assert found["dial"]["1"] != found["loss"]
    assert found["agreement"].keys() == {"all", "simple", "across"}
    assert len(found["other"]["nats"]) == 1


def test_a_reported_run_keeps_its_checkpoint_and_agrees_with_evaluate(
    prepared: Path, toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepared / "checkpoint"
    for size, kind in (("rates", "tuning"), ("11m", "final")):
        words = ["arm", str(toml), size, "2l", kind, "0", "1e-3", f"--data={data}", f"--out={tmp_path / kind}"]
        monkeypatch.setattr(sys, "argv", [*words, "--device=cpu"])
        train_arm()
    assert {path.name for path in (tmp_path / "tuning").iterdir()} == {"log.jsonl", "result.json"}
    assert {path.name for path in (tmp_path / "final").iterdir()} == {"log.jsonl", "result.json", "checkpoint"}
    found = json.loads((tmp_path / "final" / "result.json").read_text(encoding="utf-8"))
    checkpoint = load_checkpoint(tmp_path / "final" / "checkpoint")
    texts = ["bubbles in " * 20, "forks " * 30]
    [packed, _] = evaluate(checkpoint, texts, ["causal"], 0, 4)
    assert found["loss"] == pytest.approx(packed.score.loss, abs=1e-5)
    assert found["bits_per_byte"] == pytest.approx(packed.score.bits_per_byte, abs=1e-5)
    out = tmp_path / "present.json"
    monkeypatch.setattr(sys, "argv", ["present", f"--study={toml}", f"--data={data}", "--device=cpu",
                                      f"--checkpoint={tmp_path / 'final' / 'checkpoint'}", f"--out={out}"])  # fmt: skip
    measure_present()
    present = json.loads(out.read_text(encoding="utf-8"))
    assert all(present[key] == found[key] for key in ("loss", "documents", "agreement", "other", "dial"))


def test_shipping_replaces_weights_and_keeps_the_card(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    tokenizer = read_tokenizer(prepared / "checkpoint" / "english")
    config = ModelConfig(vocab_size=320, block_size=16, max_block_size=16, n_layer=1, n_head=1, n_embd=8)
    models = [Thoughtbubbles(config) for _ in range(2)]
    for folder, model in zip(("new", "present"), models, strict=True):
        save_checkpoint(tmp_path / folder, model, tokenizer, {"training": {"steps": 3}}, dtype=torch.bfloat16)
    (tmp_path / "present" / "README.md").write_text("the card", encoding="utf-8")
    named = {"size": "11m", "arm": "drawn", "kind": "final", "seed": 0, "settings": {"training": {"steps": 3}}}
    results, present = tmp_path / "results", tmp_path / "present.json"
    monkeypatch.setattr(sys, "argv", ["ship", str(tmp_path / "new"), f"--results={results}", f"--present={present}",
                                      f"--out={tmp_path / 'present'}"])  # fmt: skip
    assert ship() == 1  # nothing is measured
    present.write_text(json.dumps(PRESENT), encoding="utf-8")
    before = (tmp_path / "present" / "model.safetensors").read_bytes()
    results.write_text(json.dumps({**measured(3.1, 1.6, 0.8), **named}) + "\n", encoding="utf-8")
    assert ship() == 1
    assert "does not hold: no more bits per byte on definitions: 1.6000 1.5000" in capsys.readouterr().out
    assert (tmp_path / "present" / "model.safetensors").read_bytes() == before
    results.write_text(json.dumps({**measured(3.1, 1.4, 0.8), **named}) + "\n", encoding="utf-8")
    assert ship() == 0
    shipped = load_checkpoint(tmp_path / "present")
    for name, weights in shipped.model.state_dict().items():
        assert torch.equal(weights, models[0].state_dict()[name].bfloat16().float())
    assert shipped.provenance["evaluation"]["packed"]["perplexity"] == round(math.exp(3.1), 3)
    assert (tmp_path / "present" / "README.md").read_text(encoding="utf-8") == "the card"
    assert (tmp_path / "present" / "modeling_thoughtbubbles.py").exists()
    named["settings"] = {"training": {"steps": 4}}
    results.write_text(json.dumps({**measured(3.1, 1.4, 0.8), **named}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="was trained with other settings than the reported run"):
        ship()


def measured(loss: float, other: float, agreement: float, parameters: int = 11_600_000) -> dict[str, Any]:
    """Return what is measured of a checkpoint, by hand."""
    tokens = [100, 50, 200]
    return {
        "loss": loss, "bits_per_byte": loss / 2.6, "documents": [loss * each for each in tokens],
        "document_tokens": tokens, "other": {"bits_per_byte": other}, "code": {"bits_per_byte": 2.0},
        "agreement": {"all": agreement}, "dial": {"1": loss + 1, "2": loss}, "parameters": parameters,
        "flops_per_token": 1.0,
    }  # fmt: skip


PRESENT = measured(3.2, 1.5, 0.78)
WHERE = {"machine": "a machine", "torch": "2", "date": "2026-01-01", "seconds": 60}


@pytest.mark.parametrize(
    ("new", "failing"),
    [
        (measured(3.1, 1.5, 0.78), []),
        (measured(3.2, 1.5, 0.78), [0]),
        (measured(3.1, 1.501, 0.78), [1]),
        (measured(3.1, 1.5, 0.779), [2]),
        (measured(3.1, 1.5, 0.78, 12_100_000), [3]),
    ],
)
def test_a_checkpoint_is_shipped_only_if_all_conditions_hold(new: dict[str, Any], failing: list[int]) -> None:
    assert [i for i, each in enumerate(criteria(new, PRESENT)) if not each.holds] == failing


def test_a_lower_mean_of_few_documents_is_not_enough() -> None:
    new = measured(3.19, 1.4, 0.8)
    new["documents"][0] += 30  # one document is worse, and a sample may have it alone
    new["documents"][2] -= 34
    assert not criteria(new, PRESENT)[0].holds


def short(study: Study, **losses: float | None) -> list[dict[str, Any]]:
    """Return the short runs of the choice with these losses."""
    named = {"plain": ("choice", "2l"), "drawn": ("choice", "drawn"), "mixed": ("choice-mixed", "2l")}
    return [result(study.tuning_runs(*named[name])[0], loss, **WHERE) for name, loss in losses.items()]


def test_the_short_runs_choose_ratio_and_text(committed: Study) -> None:
    assert chosen(committed, []) == {"drawn": None, "mixed": None}
    assert chosen(committed, short(committed, plain=4.0, drawn=4.0049, mixed=4.0)) == {"drawn": True, "mixed": True}
    assert chosen(committed, short(committed, plain=4.0, drawn=4.006, mixed=4.01)) == {"drawn": False, "mixed": False}
    assert chosen(committed, short(committed, plain=4.0, drawn=None)) == {"drawn": False, "mixed": None}


def test_the_page_without_results_and_with_short_runs(committed: Study) -> None:
    assert set(ARMS) == set(committed.arms)
    assert "No run has been made." in part([], None)[1][2]
    assert part([], None)[0] == "**The shipped checkpoint.** Not measured yet: no reported run has been made."
    text = "\n\n".join(part(short(committed, plain=4.0, drawn=4.2, mixed=3.9), None)[1])
    assert "By the plan a drawn ratio is not taken (it may cost 0.005 nats), and mixed text is taken" in text
    assert "| `drawn`: the ratio drawn | 26M | 4.2000 |" in text
    assert "`rates`:\n\nNot run.\n\n`rates-longer`:\n\nNot run.\n" in text
    assert "| `2l` | 26M | – |" in "\n\n".join(part(short(committed, drawn=4.2), None)[1])


@pytest.mark.parametrize(("loss", "ships"), [(3.1, True), (3.25, False)])
def test_the_page_says_what_is_shipped(committed: Study, loss: float, ships: bool) -> None:
    arms = {"drawn": loss, "regular": 3.3, "scores": 3.26}
    results = [result(run, 4.0, **WHERE) for arm in arms for run in committed.tuning_runs("11m", arm)]
    for arm, own in arms.items():
        run = committed.run("11m", arm, "final", 0, 4e-3)
        results.append({**result(run, own, **WHERE, tokens=run.tokens), **measured(own, 1.4, 0.8)})
    parts = "\n\n".join(section(committed, results, PRESENT))
    assert DECISION[ships] in parts
    assert DECISION[not ships] not in parts
    cells = f"{loss:.4f} | {loss / 2.6:.4f} | 1.4000 | 2.0000 | 0.800 | {loss - 3.3:+.4f}"
    assert f"| `drawn`, seed 0 | 0.004 ! | {cells} |" in parts
    assert "| κ = 2L with a drawn ratio is better than a regular model | `drawn` − `regular` |" in parts
    assert "`2l` seed 0." in parts.partition("Not run:")[2]
    said = in_short(committed, results, PRESENT)
    assert DECISION[ships] in said
    assert ("These do not: fewer bits per byte on the reported text" in said) == (not ships)
    assert "- **It is open whether models with forks and a ratio that was drawn are better than regular ones**" in said


def test_every_recorded_result_is_of_the_committed_study(committed: Study) -> None:
    results = read_results(ROOT / "benchmarks" / "results" / "checkpoint.jsonl")
    assert results
    for line in results:
        rate = line["settings"]["training"]["learning_rate"]
        assert committed.run(line["size"], line["arm"], line["kind"], line["seed"], rate).is_of(line)


def test_the_twins_are_fair(committed: Study) -> None:
    """Equal tokens, rates and parameters but for the scores; what differs is forks alone."""
    runs = [committed.run("11m", arm, "final", 0, 1e-3) for arm in ("drawn", "2l", "regular", "scores")]
    assert len({run.tokens for run in runs}) == 1
    same = [{**run.training.to_dict(), "random_ratio": None, "compile": None} for run in runs]
    assert all(each == same[0] for each in same)
    assert all(committed.tuning_runs("11m", run.arm) for run in runs)
