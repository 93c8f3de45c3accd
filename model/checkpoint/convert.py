"""`thoughtbubbles convert`: make a checkpoint from one of the authors' PyTorch or JAX code."""

import argparse
import re
from collections import Counter
from pathlib import Path

import torch

from thoughtbubbles.model.checkpoint.read import empty_model
from thoughtbubbles.model.checkpoint.release import Release, read_release, read_settings
from thoughtbubbles.model.checkpoint.weights import DTYPES, check_shapes
from thoughtbubbles.model.checkpoint.write import save_checkpoint
from thoughtbubbles.model.text.tokenizer import Tokenizer


def convert(
    source: str | Path, out: str | Path, tokenizer: Tokenizer, *, norm_before_averaging: bool | None = None
) -> Release:
    """Write the release at `source` as the checkpoint `out`, and return the release.

    Weights keep their dtype; if they have several, they become float32. Raises `OSError` for a missing file, and
    `ValueError` as `read_release` and `save_checkpoint` do.
    """
    release = read_release(Path(source), norm_before_averaging=norm_before_averaging)
    model = empty_model(release.config)
    check_shapes({name: tensor.shape for name, tensor in release.state.items()}, model.state_dict())
    dtypes = {tensor.dtype for tensor in release.state.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 and dtypes <= set(DTYPES.values()) else torch.float32
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in release.state.items()}, assign=True)
    provenance = {"converted_from": "a checkpoint of the authors' code", "settings": release.settings}
    save_checkpoint(out, model, tokenizer, provenance)
    return release


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "source", type=Path, help="a folder with config.json or config.yaml, or a weights file beside it"
    )
    parser.add_argument("out", type=Path, help="the checkpoint folder to write")
    parser.add_argument("--tokenizer", default="gpt2", help="gpt2, or the path of a tiktoken ranks file (%(default)s)")
    parser.add_argument(
        "--norm-before-averaging",
        action=argparse.BooleanOptionalAction,
        help="final LayerNorm before streams are averaged, as in the first release (on where config.json has a plan)",
    )


def run(args: argparse.Namespace) -> int:
    """Convert; print what was written and what was left out."""
    read_settings(args.source)  # a mistake in them is reported before GPT-2's tokenizer is downloaded
    tokenizer = Tokenizer.from_name_or_file(args.tokenizer)
    release = convert(args.source, args.out, tokenizer, norm_before_averaging=args.norm_before_averaging)
    config = release.config
    print(f"wrote {args.out}: {config.n_layer} layers, forks before {list(config.fork_layers)},", end=" ")
    print(f"norm_before_averaging {config.norm_before_averaging},", end=" ")
    print(f"{sum(tensor.numel() for tensor in release.state.values()):,} parameters")
    for name, count in Counter(re.sub(r"\.\d+\.", ".*.", name) for name in release.dropped).items():
        print(f"left out {name} ({count})")
    return 0
