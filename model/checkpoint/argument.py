"""The checkpoint on a command line: an argument or an option, the same in every command."""

import argparse
from pathlib import Path


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Let `parser` take a checkpoint folder as CHECKPOINT or --checkpoint CHECKPOINT; `checkpoint` is None without."""
    text = "checkpoint folder (the one in checkpoints/)"
    # SUPPRESS: an argument that is not given must not undo the option. A `type` would be applied to SUPPRESS.
    parser.add_argument("checkpoint", action=_StorePath, nargs="?", default=argparse.SUPPRESS, help=text)
    parser.add_argument("--checkpoint", action=_StorePath, help="the same as an option")


class _StorePath(argparse.Action):
    def __call__(self, _parser: object, namespace: argparse.Namespace, value: object, _option: object = None) -> None:
        setattr(namespace, self.dest, Path(str(value)))
