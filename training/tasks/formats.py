"""Read the published files of each set into questions, worded as in lm-evaluation-harness.

Each reader follows the harness's task named in its docstring: prompt, delimiter and choices are those of its YAML file
(version 0.4), as `tests/training/test_harness.py` checks. Readers raise `ValueError` naming file and line.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from thoughtbubbles.training.data.json_lines import is_json_lines
from thoughtbubbles.training.data.text_files import read_text
from thoughtbubbles.training.tasks.records import Record, read_records


@dataclass(frozen=True, kw_only=True)
class Question:
    """A context and its possible continuations."""

    context: str
    """The text before the choices; empty: end-of-text."""
    choices: tuple[str, ...]
    """Continuations, without the delimiter."""
    gold: int = 0
    """Index of the right choice, from 0."""
    delimiter: str = " "
    """Between context and continuation, scored with the continuation."""
    subset: str = ""
    """The subset it belongs to, if the set has subsets."""


Reader = Callable[[Path], Iterator[Question]]


def lambada(path: Path) -> Iterator[Question]:
    """Read `lambada_openai`: a passage without its last word, and that word.

    `.jsonl` with a `text` field (OpenAI's version), or text with a passage per line (the authors' version).
    """
    texts = (record.get("text", str) for record in read_records(path)) if is_json_lines(path) else _lines(path)
    for text in texts:
        context, _, word = text.rpartition(" ")
        yield Question(context=context, choices=(word,))


def hellaswag(path: Path) -> Iterator[Question]:
    """Read `hellaswag`: `hellaswag_val.jsonl` with `activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`."""
    for record in read_records(path):
        endings = record.texts("endings")
        scene = f"{record.get('ctx_a', str)} {record.get('ctx_b', str).capitalize()}"
        yield Question(
            context=_without_brackets(f"{record.get('activity_label', str)}: {scene}"),
            choices=tuple(map(_without_brackets, endings)),
            gold=record.label(len(endings)),
        )


def piqa(path: Path) -> Iterator[Question]:
    """Read `piqa`: `goal`, `sol1`, `sol2`, and a `label` each, or a line each in `NAME-labels.lst` beside the file."""
    label_file = path.with_name(f"{path.name.partition('.')[0]}-labels.lst")
    labels = iter(read_text(label_file).split()) if label_file.exists() else iter(())
    for record in read_records(path):
        record.values.setdefault("label", next(labels, None))
        yield Question(
            context=f"Question: {record.get('goal', str)}\nAnswer:",
            choices=(record.get("sol1", str), record.get("sol2", str)),
            gold=record.label(2),
        )


def openbookqa(path: Path) -> Iterator[Question]:
    """Read `openbookqa`: the authors' nested `question`, Hugging Face's `question_stem`, or flat `choices`, `label`."""
    for record in read_records(path):
        if isinstance(record.values.get("question"), dict):
            nested = record.record("question")
            lettered = nested.records("choices")
            letters, texts = (tuple(each.get(name, str) for each in lettered) for name in ("label", "text"))
            yield _lettered(record, nested.get("stem", str), letters, texts)
        elif "question_stem" in record.values:
            columns = record.record("choices")
            yield _lettered(record, record.get("question_stem", str), columns.texts("label"), columns.texts("text"))
        else:
            choices = record.texts("choices")
            yield Question(context=record.get("question", str), choices=choices, gold=record.label(len(choices)))


def blimp(path: Path) -> Iterator[Question]:
    """Read `blimp`: `sentence_good` against `sentence_bad`, each after end-of-text; `UID` names the paradigm."""
    for record in read_records(path):
        pair = (record.get("sentence_good", str), record.get("sentence_bad", str))
        yield Question(context="", choices=pair, subset=str(record.values.get("UID", "")))


def agreement(path: Path) -> Iterator[Question]:
    """Read subject–verb agreement: `good` against `bad` after `prefix`, which ends in a space; `task` names subsets."""
    for record in read_records(path):
        pair = (record.get("good", str), record.get("bad", str))
        subset = str(record.values.get("task", ""))
        yield Question(context=record.get("prefix", str), choices=pair, delimiter="", subset=subset)


def _lettered(record: Record, stem: str, letters: tuple[str, ...], texts: tuple[str, ...]) -> Question:
    answer = record.get("answerKey", str).lstrip()
    if answer not in letters or len(letters) != len(texts):
        raise ValueError(f"{record.where}: needs choices of which 'answerKey' names one")
    return Question(context=stem, choices=texts, gold=letters.index(answer))


def _without_brackets(text: str) -> str:
    """Return `text` without the bracketed marks of HellaSwag's WikiHow part."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _lines(path: Path) -> Iterator[str]:
    return (line for line in read_text(path).split("\n") if line.strip())
