"""`thoughtbubbles generate`: continue a text in the terminal."""

import argparse
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from rich.console import Console

from thoughtbubbles.engine import RequestUsage, TokenEvent
from thoughtbubbles.model import Tokenizer
from thoughtbubbles.model.checkpoint.argument import CHECKPOINT_HELP
from thoughtbubbles.terminal import session
from thoughtbubbles.terminal.interrupt import interrupts
from thoughtbubbles.terminal.shading import TokenWriter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments; those for sampling are fields of `SamplingParams`."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[CHECKPOINT] PROMPT",
        help="text to continue (none: the start of a document), and before it a checkpoint",
    )
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="write each token when it is generated, not all at the end (on in a terminal)",
    )
    parser.add_argument("--checkpoint", help=f"the same as an option: {CHECKPOINT_HELP} (the one in checkpoints/)")
    session.add_arguments(parser, max_tokens=128)


def run(args: argparse.Namespace) -> int:
    """Print the prompt and its continuation, shaded by streams if the terminal has colours; return 130 after Ctrl-C."""
    console, text = Console(), _words(args)
    checkpoint, engine = session.load(args)
    writer = TokenWriter(checkpoint.model.config.max_ratio, console)
    prompt = checkpoint.tokenizer.encode(text)
    context = engine.max_model_len - max(1, len(prompt))
    params = session.sampling_params(args, context, return_fork_counts=writer.shaded)
    events = session.events(engine, prompt or [checkpoint.tokenizer.end_of_text], params)
    stream = console.is_terminal if args.stream is None else args.stream
    writer.legend()
    if not writer.shaded:
        writer.write(text)
    with interrupts() as interrupted:
        uninterrupted = takewhile(lambda _: not interrupted(), events)
        usage = _show(uninterrupted if stream else list(uninterrupted), prompt, checkpoint.tokenizer, writer)
    writer.write("\n")
    if usage:
        writer.note(_summary(usage))
    return 0 if usage else 130


def _words(args: argparse.Namespace) -> str:
    """Return the prompt, and set `args.checkpoint` to a folder before it; a folder alone is a checkpoint."""
    words = list(args.words)
    if words and args.checkpoint is None and (len(words) > 1 or Path(words[0]).is_dir()):
        args.checkpoint = words.pop(0)
    if len(words) > 1:
        args.parser.error(f"one prompt at a time: quote it; these are {len(words)} words")
    return words[0] if words else ""


def _show(
    events: Iterable[TokenEvent], prompt: list[int], tokenizer: Tokenizer, writer: TokenWriter
) -> RequestUsage | None:
    """Write the tokens of `events`, after those of the prompt if shades are shown. Return the usage, if it finished."""
    usage = None
    for event in events:
        if writer.shaded and prompt and event.prompt:
            writer.write_all(prompt, event.prompt.fork_counts, tokenizer)
        writer.write(event.text, event.fork_count)
        usage = event.usage
    return usage


def _summary(usage: RequestUsage) -> str:
    streams = 1 + usage.fork_count / usage.computed_tokens
    speed = f", {usage.completion_tokens / usage.decode_seconds:.0f} tokens/s" if usage.decode_seconds else ""
    return f"{usage.completion_tokens} tokens, {streams:.2f} streams a token{speed}"
