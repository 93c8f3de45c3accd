"""`thoughtbubbles batch`: answer a file of OpenAI's batch lines, and go on where an earlier run stopped."""

import argparse
import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from thoughtbubbles.server.batch.input_file import BadLine, Line, count_lines, read_lines
from thoughtbubbles.server.batch.output_file import Output, open_output
from thoughtbubbles.server.settings import ServerSettings
from thoughtbubbles.server.sources import add_arguments as add_settings
from thoughtbubbles.server.sources import read_settings

if TYPE_CHECKING:
    from thoughtbubbles.server.batch.runner import Answer

SETTINGS = frozenset(
    {
        "cache_bytes", "cache_dtype", "checkpoint", "device", "dtype", "executor", "max_batch_size", "max_body_bytes",
        "max_choices", "max_model_len", "max_waiting_streams", "model_name", "speculate", "threads", "weights",
    }
)  # fmt: skip
"""The settings of `thoughtbubbles serve` that a batch has, too."""
ERRORS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments; the options are settings of `thoughtbubbles serve`."""
    parser.epilog = (
        "IN has OpenAI's batch lines, for /v1/completions and /v1/chat/completions; OUT gets its batch output lines, in"
        " any order. After an interruption the same command goes on: lines that OUT answers are not computed again. "
        "Exit status: 0 if every line has a completion, 1 if some have errors, 2 if a file, a setting or the checkpoint"
        " cannot be used."
    )
    parser.add_argument("input", type=Path, metavar="IN", help="file of requests, a JSON object a line")
    parser.add_argument("output", type=Path, metavar="OUT", help="file of answers, made or continued")
    add_settings(parser, SETTINGS)


def run(args: argparse.Namespace) -> int:
    """Answer each line of IN in OUT. Return 0, or 1 if some lines of IN have errors, also from earlier runs.

    Raises `ValueError` or `OSError` if a file, a setting or the checkpoint cannot be used.
    """
    settings = replace(read_settings(args, os.environ), max_client_share=1)  # a batch has one client
    _check_files(args.input, args.output)
    lines = count_lines(args.input, settings.max_body_bytes)
    with open_output(args.output) as output, tqdm(total=lines, unit=" lines", dynamic_ncols=True, disable=None) as bar:
        batch = _Batch(output, bar)
        pending = batch.pending(read_lines(args.input, settings.max_body_bytes))
        for answer in _answers(pending, settings):
            batch.write(answer)
    before = f", {batch.skipped} of them by an earlier run" if batch.skipped else ""
    print(f"{args.output}: {lines} lines answered{before}; errors: {batch.errors}")
    return ERRORS if batch.errors else 0


class _Batch:
    """Writes answers, and counts them."""

    def __init__(self, output: Output, bar: "tqdm[None]") -> None:
        self.errors = 0
        """Lines of the input whose answer is an error."""
        self.skipped = 0
        """Lines of the input that an earlier run answered."""
        self._output = output
        self._bar = bar

    def pending(self, lines: Iterator[Line | BadLine]) -> Iterator[Line]:
        """Yield the lines that an engine must answer; write the errors of bad lines."""
        for line in lines:
            succeeded = self._output.succeeded(line)
            if succeeded is not None:
                self.skipped += 1
                self._count(succeeded)
            elif isinstance(line, BadLine):
                self._output.write_bad_line(line)
                self._count(False)
            else:
                yield line

    def write(self, answer: "Answer") -> None:
        """Write the answer to a line."""
        self._output.write_answer(answer)
        self._count(answer.status == 200)

    def _count(self, succeeded: bool) -> None:
        self.errors += not succeeded
        self._bar.set_postfix(errors=self.errors, refresh=False)
        self._bar.update()


def _answers(pending: Iterator[Line], settings: ServerSettings) -> "Iterator[Answer]":
    """Yield the answers to lines. The checkpoint is loaded if there is a line."""
    first = next(pending, None)
    if first is None:
        return
    # Imported here so that nothing before a step needs to wait for torch.
    from thoughtbubbles.server.batch.runner import Runner  # noqa: PLC0415
    from thoughtbubbles.server.bridge.loading import load_model  # noqa: PLC0415

    runner = Runner(*load_model(settings))
    gc.freeze()  # as `bridge.loop` does: each search of what is loaded for garbage takes as long as many steps
    yield from runner.answers(chain([first], pending))


def _check_files(source: Path, output: Path) -> None:
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file")
    if not source.is_file():
        raise OSError(f"{source} is not a regular file")
    if output.exists() and output.samefile(source):
        raise ValueError(f"{output} is the input, too: choose another output file")
