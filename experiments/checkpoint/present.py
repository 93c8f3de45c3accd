"""Measure the checkpoint that is in the repository as the study's runs are, and write it to one file.

    python -m experiments.checkpoint.present [--study FILE] [--data data/checkpoint] [--checkpoint FOLDER] [--out FILE]

The functions that measure are those of the study's runs: `experiments.checkpoint.measure`.
"""

import argparse
import json
from pathlib import Path

import torch

from benchmarks.header import machine
from experiments.checkpoint.measure import Evaluation, measure
from experiments.runner.plan import read_study
from thoughtbubbles.model import load_checkpoint, shipped_checkpoint


def main() -> None:
    """Measure and write."""
    args = _arguments()
    checkpoint = load_checkpoint(args.checkpoint, device=args.device)
    found = measure(checkpoint.model, args.data, read_study(args.study, Evaluation).evaluation)
    made = {"machine": machine(), "torch": torch.__version__, "provenance": checkpoint.provenance}
    args.out.write_text(json.dumps({**made, **found}) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", type=Path, default=Path("experiments/checkpoint/study.toml"))
    parser.add_argument("--data", type=Path, default=Path("data/checkpoint"), help="folders that data.py made")
    parser.add_argument("--checkpoint", type=Path, default=shipped_checkpoint())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checkpoint-present.json"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
