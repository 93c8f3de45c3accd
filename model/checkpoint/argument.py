"""The command-line argument for a checkpoint folder, positional or an option, the same in every command."""

import argparse
from pathlib import Path


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Add CHECKPOINT and --checkpoint CHECKPOINT to `parser`; `checkpoint` is None if neither is given."""
    text = "checkpoint folder (the one in checkpoints/)"
    # SUPPRESS: an absent argument must not overwrite the option. With `type`, argparse would convert SUPPRESS itself.
    parser.add_argument("checkpoint", action=_StorePath, nargs="?", default=argparse.SUPPRESS, help=text)
    parser.add_argument("--checkpoint", action=_StorePath, help="the same as an option")


class _StorePath(argparse.Action):
    def __call__(self, _parser: object, namespace: argparse.Namespace, value: object, _option: object = None) -> None:
        setattr(namespace, self.dest, Path(str(value)))
