"""`thoughtbubbles generate`: continue a text in the terminal, token by token."""

import argparse
from pathlib import Path
from typing import get_args

from engine.config import EngineConfig
from engine.engine import Engine
from engine.sampling_params import ForkSelection, SamplingParams
from engine.threads import set_threads
from model import load_checkpoint, shipped_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments; those of sampling are fields of `SamplingParams`."""
    defaults = SamplingParams()
    parser.add_argument("prompt", nargs="?", default="", help="the text to continue (none: the start of a document)")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint folder (the one in checkpoints/)")
    parser.add_argument("--device", default="cpu", help="torch device, such as cpu or cuda (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, help="most tokens to make (%(default)s)")
    parser.add_argument("--temperature", type=float, default=defaults.temperature, help="0 is greedy (%(default)s)")
    parser.add_argument("--top-p", type=float, default=defaults.top_p, help="share of probability kept (%(default)s)")
    parser.add_argument("--seed", type=int, help="makes the text repeatable")
    parser.add_argument("--fork-ratio", type=float, help="streams per token that the budget allows (the checkpoint's)")
    parser.add_argument(
        "--fork-selection",
        choices=get_args(ForkSelection),
        default=defaults.fork_selection,
        help="the rule that picks surviving streams (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the prompt and what follows it as it is made."""
    params = SamplingParams(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        fork_ratio=args.fork_ratio,
        fork_selection=args.fork_selection,
    )
    set_threads()
    checkpoint = load_checkpoint(args.checkpoint or shipped_checkpoint(), device=args.device)
    engine = Engine(checkpoint.model, checkpoint.tokenizer, EngineConfig(max_batch_size=1))
    prompt = checkpoint.tokenizer.encode(args.prompt) or [checkpoint.tokenizer.end_of_text]
    engine.add("terminal", prompt, params)
    print(args.prompt, end="", flush=True)
    while engine.has_work:
        for event in engine.step():
            print(event.text, end="", flush=True)
    print()
    return 0
