"""Put a checkpoint of the study in the place of the present one, if the plan's conditions hold.

    python -m experiments.checkpoint.ship FOLDER [--results FILE] [--present FILE] [--out FOLDER]

FOLDER is what the reported run has left, `runs/checkpoint/11m-drawn-seed-0/checkpoint`. docs/experiments/checkpoint.md
lists what has to follow: tests, results, pages and pictures that have numbers of the checkpoint.
"""

import argparse
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from experiments.checkpoint.decide import NEW, REPORTED, criteria, read_present
from experiments.runner.found import REGULAR
from experiments.runner.plan import Result
from experiments.runner.results import read_results
from thoughtbubbles.model import load_checkpoint, save_checkpoint, shipped_checkpoint
from thoughtbubbles.model.huggingface.export import export_checkpoint

COMMAND = "python -m experiments.checkpoint.study"
CARD = "README.md"


def main() -> int:
    """Write the checkpoint and return 0, or print what does not hold and return 1."""
    args = _arguments()
    results, present = read_results(args.results), read_present(args.present)
    new = _reported(results, NEW)
    if new is None or present is None:
        print("nothing to decide on: the reported run or the present checkpoint was not measured")
        return 1
    for each in (rules := criteria(new, present)):
        print(f"{'holds' if each.holds else 'does not hold'}: {each.says}: {each.new} {each.present}")
    if not all(each.holds for each in rules):
        return 1
    ship(args.checkpoint, new, _reported(results, REGULAR), args.out)
    return 0


def ship(folder: Path, new: Result, regular: Result | None, out: Path) -> None:
    """Write the checkpoint `folder`, whose result is `new`, to `out`, a shipped checkpoint with its card.

    `ValueError` if the checkpoint is of another training than the result.
    """
    checkpoint = load_checkpoint(folder, dtype=torch.bfloat16)
    if checkpoint.provenance["training"] != new["settings"]["training"]:
        raise ValueError(f"{folder} was trained with other settings than the reported run")
    provenance = {"command": COMMAND, **checkpoint.provenance, "evaluation": _evaluation(new, regular)}
    with TemporaryDirectory() as name:
        plain, exported = Path(name) / "plain", Path(name) / "exported"
        save_checkpoint(plain, checkpoint.model, checkpoint.tokenizer, provenance, dtype=torch.bfloat16)
        shutil.copyfile(out / CARD, plain / CARD)
        export_checkpoint(plain, exported)
        for file in exported.iterdir():
            shutil.copyfile(file, out / file.name)


def _reported(results: Sequence[Result], arm: str) -> Result | None:
    """Return the first reported result of an arm that did not diverge."""
    of = (line for line in results if (line["size"], line["arm"], line["kind"]) == (REPORTED, arm, "final"))
    return next((line for line in of if line["loss"] is not None), None)


def _evaluation(new: Result, regular: Result | None) -> dict[str, Any]:
    """Return what config.json says of the checkpoint's loss."""
    packed = {
        "loss": round(new["loss"], 4),
        "perplexity": _perplexity(new),
        "bits_per_byte": round(new["bits_per_byte"], 4),
    }
    twin = {} if regular is None else {"regular_twin": {"packed_perplexity": _perplexity(regular)}}
    return {"data": "val.jsonl.gz", "rule": "causal", "packed": packed, **twin}


def _perplexity(result: Result) -> float:
    return round(math.exp(result["loss"]), 3)


def _arguments() -> argparse.Namespace:
    results = Path("benchmarks/results")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--results", type=Path, default=results / "checkpoint.jsonl")
    parser.add_argument("--present", type=Path, default=results / "checkpoint-present.json")
    parser.add_argument("--out", type=Path, default=shipped_checkpoint())
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
