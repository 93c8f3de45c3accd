"""Thoughtbubbles: a transformer that forks its residual streams, with its engine, server and training.

    import thoughtbubbles
    model, tokenizer = thoughtbubbles.load("checkpoints/…")

The names below are imported on first access, so that nothing loads more than it needs.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import torch

    from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
    from thoughtbubbles.model import ModelConfig, Thoughtbubbles, Tokenizer

    __version__: str

__all__ = [
    "Engine",
    "EngineConfig",
    "ModelConfig",
    "SamplingParams",
    "Thoughtbubbles",
    "Tokenizer",
    "load",
]

FLOORS = {
    "Engine": "thoughtbubbles.engine",
    "EngineConfig": "thoughtbubbles.engine",
    "ModelConfig": "thoughtbubbles.model",
    "SamplingParams": "thoughtbubbles.engine",
    "Thoughtbubbles": "thoughtbubbles.model",
    "Tokenizer": "thoughtbubbles.model",
}

# command: (the module that has its add_arguments(parser) and run(args) -> int, its line of help)
COMMANDS = {
    "serve": ("thoughtbubbles.server.__main__", "serve a checkpoint over HTTP"),
    "batch": ("thoughtbubbles.server.batch.command", "answer a file of OpenAI's batch lines without a server"),
    "generate": ("thoughtbubbles.terminal.generate", "continue a text in the terminal"),
    "chat": ("thoughtbubbles.terminal.chat", "talk in the terminal with a checkpoint that has a chat template"),
    "prepare": ("thoughtbubbles.training.data.prepare", "turn text files into training data"),
    "train": ("thoughtbubbles.training.train", "train a model"),
    "evaluate": ("thoughtbubbles.training.evaluate", "measure a checkpoint on held-out text"),
    "analyse": (
        "thoughtbubbles.training.analyse",
        "look inside a checkpoint: figures of its forks, and the data behind them",
    ),
    "inspect": ("thoughtbubbles.model.checkpoint.inspection", "describe a checkpoint"),
    "bench": ("thoughtbubbles_client.bench.command", "load a server and measure what its clients see"),
    "export": ("thoughtbubbles.model.huggingface.export", "write a checkpoint for Hugging Face's tools"),
    "push": ("thoughtbubbles.model.huggingface.push", "upload a checkpoint to a Hugging Face hub"),
    "convert": (
        "thoughtbubbles.model.checkpoint.convert",
        "make a checkpoint from one of the authors' PyTorch or JAX code",
    ),
}


class Command(Protocol):
    """The interface of a command's module."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments to `parser`."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the command and return its exit status. Raise `ValueError` or `OSError` with the reason if it cannot."""


def load(
    checkpoint: str | Path, device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None
) -> "tuple[Thoughtbubbles, Tokenizer]":
    """Return the model, in evaluation mode on `device` as `dtype` (float32), and the tokenizer of a checkpoint.

    `checkpoint` is a folder or a hub id, `org/name` or `org/name@revision`. Raises
    `thoughtbubbles.model.CheckpointError`, a `ValueError`, with the reason if it is not a checkpoint.
    """
    import torch  # noqa: PLC0415  (imported on first use, like every name here)

    from thoughtbubbles.model import load_checkpoint  # noqa: PLC0415

    loaded = load_checkpoint(checkpoint, device=device, dtype=dtype or torch.float32)
    return loaded.model, loaded.tokenizer


def __getattr__(name: str) -> object:
    if name == "__version__":
        from thoughtbubbles.server.package_version import package_version  # noqa: PLC0415

        return package_version()
    if name in FLOORS:
        return getattr(importlib.import_module(FLOORS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def open_standard_streams() -> None:
    """Open standard input, output and error on the null device if the process was started without them.

    The next files and sockets would get their numbers: a message to standard error would be written into one of them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


if sys.argv[:1] == ["-m"]:  # while `python -m` looks for a module of ours, such as thoughtbubbles.server
    open_standard_streams()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console command and return its exit status: 0, or 2 with the reason on standard error.

    1 if the reader of the output closed it, 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    open_standard_streams()
    try:
        args = _parse(argv)
        return _module(args.command).run(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the output closed it, as `head` does; Python would flush into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        from thoughtbubbles.model.files.untrusted import explain  # noqa: PLC0415

        print(f"thoughtbubbles: error: {explain(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        from thoughtbubbles.model.memory import lack_of_memory  # noqa: PLC0415

        if (message := lack_of_memory(error)) is None:
            raise
        print(f"thoughtbubbles: error: {message}", file=sys.stderr)
        return 2


class _Version(argparse.Action):
    """The action of `--version`, which looks up the version only when it is used."""

    def __call__(self, parser: argparse.ArgumentParser, *_args: object, **_options: object) -> None:
        print(parser.prog, __getattr__("__version__"))
        parser.exit()


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line; a mistake ends the process with the usage of the command that it is in."""
    parser = _parser(argv[0] if argv else "")
    args, unknown = parser.parse_known_args(argv)
    if unknown:  # `parse_args` would print the usage of all commands
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _parser(command: str) -> argparse.ArgumentParser:
    """Return the parser of all commands; only the module of `command` is imported, and has its arguments."""
    parser = argparse.ArgumentParser(prog="thoughtbubbles", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, line) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=line, description=f"{line[0].upper()}{line[1:]}.")
        subparser.set_defaults(parser=subparser)
        if name == command:
            _module(name).add_arguments(subparser)
    return parser


def _module(command: str) -> Command:
    try:
        return cast(Command, importlib.import_module(COMMANDS[command][0]))
    except ModuleNotFoundError as missing:
        if missing.name != "thoughtbubbles_client":
            raise
        from thoughtbubbles.model.extras import client_install_command  # noqa: PLC0415

        raise ValueError(f"{command} is in a separate package: {client_install_command()}") from None
