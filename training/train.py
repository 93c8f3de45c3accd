"""`train`: train a model by a recipe on a prepared folder, and write checkpoints."""

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from thoughtbubbles.model import ModelConfig, set_threads
from thoughtbubbles.training.config import TrainConfig
from thoughtbubbles.training.distributed import join
from thoughtbubbles.training.flags import add_device_flags, add_field_flags, override
from thoughtbubbles.training.recipes import MIXTURES, PHASES, RECIPES
from thoughtbubbles.training.stopping import stop_on_signal
from thoughtbubbles.training.tracking import Tracker, tensorboard, weights_and_biases
from thoughtbubbles.training.trainer import Trainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--recipe", choices=RECIPES, default="shipped", metavar="RECIPE",
                        help=f"source of all settings (%(default)s): {', '.join(RECIPES)}")  # fmt: skip
    parser.add_argument("--phase", choices=PHASES, default="pretrain",
                        help="phase of the curriculum (%(default)s); a later one continues from --start")  # fmt: skip
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", type=Path, help="a prepared folder, or a TOML file that mixes several")
    data.add_argument("--sets", type=Path, metavar="FOLDER",
                      help="folder with the prepared sets of the phase's mixture, each under its name")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder for best/, checkpoint/, state/ and the log")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out exactly")
    parser.add_argument("--start", type=Path, help="checkpoint whose weights the run starts from")
    parser.add_argument("--tensorboard", action="store_true", help="also log to TensorBoard, in OUT/tensorboard")
    parser.add_argument("--wandb", metavar="PROJECT", help="also log to this project of Weights & Biases")
    add_device_flags(parser)
    add_field_flags(parser, ModelConfig)
    add_field_flags(parser, TrainConfig)


def run(args: argparse.Namespace) -> int:
    """Train and return 0, also after a signal that stopped the run early and cleanly."""
    set_threads(args.threads)
    model_config, config = RECIPES[args.recipe]()
    model_config, config = override(model_config, args), override(PHASES[args.phase](config), args)
    with stop_on_signal() as stopping, join(args.device) as ranks:
        trainer = Trainer(
            model_config, config, data=args.data or MIXTURES / f"{args.phase}.toml", out=args.out, ranks=ranks,
            resume=args.resume, start=args.start, root=args.sets,
        )  # fmt: skip
        with ExitStack() as stack:
            trackers = [stack.enter_context(tracker) for tracker in _trackers(args, config)] if ranks.first else []
            trainer.run(stopping, trackers)
        if ranks.first:
            print(f"stopped after step {trainer.step} of {config.steps}; {args.out}")
    return 0


def _trackers(args: argparse.Namespace, config: TrainConfig) -> Iterator[AbstractContextManager[Tracker]]:
    if args.tensorboard:
        yield tensorboard(args.out / "tensorboard")
    if args.wandb is not None:
        yield weights_and_biases(args.wandb, args.out, config.to_dict())
