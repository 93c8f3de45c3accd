"""What the commands share: arguments, the engine, and the events of one request."""

import argparse
from collections.abc import Generator, Sequence
from typing import get_args

from thoughtbubbles.engine import Engine, EngineConfig, ForkSelection, SamplingParams, TokenEvent
from thoughtbubbles.model import Checkpoint, load_checkpoint, set_threads, shipped_checkpoint

REQUEST_ID = "terminal"


def add_arguments(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """Add the arguments for device, sampling and forking; `max_tokens` is the default of its flag."""
    defaults = SamplingParams()
    parser.set_defaults(usual_max_tokens=max_tokens)
    parser.add_argument("--device", default="cpu", help="torch device, such as cpu or cuda (%(default)s)")
    parser.add_argument(
        "--max-tokens", type=int, help=f"most tokens to generate ({max_tokens}, or fewer where the context ends)"
    )
    parser.add_argument("--temperature", type=float, default=defaults.temperature, help="0 is greedy (%(default)s)")
    parser.add_argument("--top-p", type=float, default=defaults.top_p, help="share of probability kept (%(default)s)")
    parser.add_argument("--top-k", type=int, default=defaults.top_k, help="tokens kept, 0 keeps all (%(default)s)")
    parser.add_argument("--stop", action="append", default=[], help="stop before this text; may be repeated")
    parser.add_argument("--seed", type=int, help="make the text repeatable")
    parser.add_argument("--fork-ratio", type=float, help="streams per token in the budget (the checkpoint's)")
    parser.add_argument(
        "--fork-selection",
        choices=get_args(ForkSelection),
        default=defaults.fork_selection,
        help="rule that selects surviving streams (%(default)s)",
    )


def sampling_params(args: argparse.Namespace, context: int, *, return_fork_counts: bool) -> SamplingParams:
    """Return the sampling parameters of the arguments, for a prompt after which `context` tokens fit.

    Raise `ValueError` naming a value that is out of range.
    """
    return SamplingParams(
        max_tokens=max(1, min(args.usual_max_tokens, context)) if args.max_tokens is None else args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        stop=tuple(args.stop),
        seed=args.seed,
        fork_ratio=args.fork_ratio,
        fork_selection=args.fork_selection,
        return_fork_counts=return_fork_counts,
    )


def load(args: argparse.Namespace) -> tuple[Checkpoint, Engine]:
    """Return the checkpoint of `--checkpoint`, by default the repository's, and an engine for one request at a time."""
    set_threads()
    checkpoint = load_checkpoint(args.checkpoint or shipped_checkpoint(), device=args.device)
    return checkpoint, Engine(checkpoint.model, checkpoint.tokenizer, EngineConfig(max_batch_size=1))


def events(engine: Engine, prompt: Sequence[int], params: SamplingParams) -> Generator[TokenEvent, None, None]:
    """Add a request to `engine` and return an iterator over its events; closing the iterator aborts the request.

    Raises `InvalidRequest` if the engine refuses the request. The iterator raises `ValueError` if the model's logits
    are not finite.
    """
    engine.add(REQUEST_ID, prompt, params)
    return _events(engine)


def _events(engine: Engine) -> Generator[TokenEvent, None, None]:
    try:
        while engine.has_work:
            for event in engine.step():
                if event.finish_reason == "error":
                    yield event
                    raise ValueError("the model's logits are NaN or infinite: no token can be drawn from them")
                yield event
    finally:
        engine.abort(REQUEST_ID)
