"""Training on several GPUs of one host: DDP beside one process, and FSDP2 with a save and a resume.

    python -m benchmarks.training.parallel [--gpus 2] [--parts ddp fsdp] [--recipe speed] [--sequences 128]

`ddp` times one process and then `--gpus` of them on as many sequences each: optimizer steps on random tokens, the ranks
asking each other before every step whether to stop, as in training. The median of three timings of `--timed-steps` is
told, the lowest and highest, and the ratio of the medians.

`fsdp` takes `--sharded-steps` of `--sharded-recipe`, writes its state after the first half of them while it goes on,
then has new processes read that state and take the second half again: the losses of both should be the same.

Any setting of model and training is changed for both, as in `train`; `--device cpu` tries it out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.header import header
from thoughtbubbles.model import ModelConfig
from thoughtbubbles.training.config import TrainConfig
from thoughtbubbles.training.flags import add_field_flags
from thoughtbubbles.training.recipes import RECIPES


def main(argv: list[str] | None = None) -> None:
    """Print a line for each thing measured, as it is."""
    argv = sys.argv[1:] if argv is None else argv
    args = arguments().parse_args(argv)
    print(f"{header()}\n# {args.gpus} of these", flush=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for part in args.parts:
            {"ddp": _ddp, "fsdp": _fsdp}[part](args, argv, Path(folder))


def arguments() -> argparse.ArgumentParser:
    """What each process is told too."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=("ddp", "fsdp"), default=("ddp", "fsdp"))
    parser.add_argument("--recipe", choices=RECIPES, default="speed", help="of the part ddp (%(default)s)")
    parser.add_argument("--sequences", type=int, default=128, help="on each GPU, of the part ddp (%(default)s)")
    parser.add_argument("--timed-steps", type=int, default=20, help="in one timing (%(default)s)")
    parser.add_argument("--sharded-recipe", choices=RECIPES, default="1.9b", help="of the part fsdp (%(default)s)")
    parser.add_argument("--sharded-steps", type=int, default=8, help="of the part fsdp (%(default)s)")
    parser.add_argument("--sharded-sequences", type=int, default=16, help="on each GPU, of fsdp (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where states are written, 12 bytes a parameter; then removed")
    parser.add_argument("--device", default="cuda")
    add_field_flags(parser, ModelConfig)
    add_field_flags(parser, TrainConfig)
    return parser


def _ddp(args: argparse.Namespace, argv: list[str], folder: Path) -> None:
    medians = []
    for gpus in (1, args.gpus):
        told = _run("speed", gpus, argv, folder)
        rates = sorted(told["rates"])
        medians.append(statistics.median(rates))
        ratio = f": {medians[1] / medians[0]:.3f} times one" if len(medians) > 1 else ""
        print(
            f"{args.recipe} on {gpus}, {told['size']}: {medians[-1]:,.0f} tokens/s "
            f"({rates[0]:,.0f} to {rates[-1]:,.0f}), {told['gib']:.1f} GiB each, "
            f"warm-up {told['warm_up']:.0f} s{ratio}",
            flush=True,
        )


def _fsdp(args: argparse.Namespace, argv: list[str], folder: Path) -> None:
    learned = _run("learn", args.gpus, argv, folder)
    print(
        f"{args.sharded_recipe} on {args.gpus}, {learned['size']}: {learned['rate']:,.0f} tokens/s, "
        f"{learned['gib']:.1f} GiB each, first step {learned['warm_up']:.0f} s; "
        f"its state of {learned['state']:.1f} GiB copied in {learned['copied']:.1f} s and written in "
        f"{learned['written']:.1f} s",
        flush=True,
    )
    resumed = _run("resume", args.gpus, argv, folder)
    again = learned["losses"][-len(resumed["losses"]) :]
    apart = max(abs(a - b) for a, b in zip(again, resumed["losses"], strict=True))
    print(
        f"resumed, the state read in {resumed['read']:.1f} s: losses {_losses(resumed['losses'])} where "
        f"they were {_losses(again)}, at most {apart:.1g} apart",
        flush=True,
    )


def _run(part: str, gpus: int, argv: list[str], folder: Path) -> dict[str, Any]:
    """What the first of `gpus` processes tells of `part`."""
    told = folder / f"{part}.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)]
    script = ["-m", "benchmarks.training.rank", part, str(folder), *argv]
    subprocess.run([*launch, *script], check=True, cwd=Path(__file__).parents[2])  # noqa: S603 - our own command line
    found: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return found


def _losses(losses: list[float]) -> str:
    return " ".join(f"{loss:.5f}" for loss in losses)


if __name__ == "__main__":
    main()
