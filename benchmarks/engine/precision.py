"""What rounding costs, in bits per byte: on a CPU weights in int8 and a cache in float16, on a GPU a cache in float8.

    python -m benchmarks.engine.precision --text data/val.jsonl.gz [--windows 8] [--device cuda]

The engine scores packed windows of the text by `prompt_logprobs`. The first way, the portable executor on a CPU and
float32 on a GPU, is what the others are compared with. Of its log-probabilities each has the differences' median, 99%
and largest. The difference of the losses has the standard error of the windows' differences.
"""

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.header import header
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams, set_threads
from thoughtbubbles.model import Checkpoint, load_checkpoint, shipped_checkpoint
from thoughtbubbles.training.data.documents import read_documents
from thoughtbubbles.training.measures import Score, packed_windows

WAYS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "cpu": {
        "portable": ("float32", {"executor": "portable"}),
        "native": ("float32", {"executor": "native"}),
        "native, float16 cache": ("float32", {"executor": "native", "cache_dtype": "float16"}),
        "native, int8 weights": ("float32", {"executor": "native", "weights": "int8"}),
    },
    "cuda": {
        "float32": ("float32", {}),
        "bfloat16": ("bfloat16", {}),
        "bfloat16, float8 cache": ("bfloat16", {"cache_dtype": "float8"}),
    },
}
"""The dtype of the model, and settings of the engine, by the kind of device."""


def main() -> None:
    """Print the table."""
    args = _arguments()
    set_threads(args.threads)
    source = args.checkpoint or shipped_checkpoint()
    checkpoint = load_checkpoint(source)
    tokenizer, end = checkpoint.tokenizer, checkpoint.tokenizer.end_of_text
    texts = tokenizer.encode_batch(list(read_documents([args.text])))
    ids = np.array([i for text in texts for i in (end, *text)], dtype=np.int64)
    windows = packed_windows(ids, checkpoint.model.config.block_size - 1)
    chosen = [window.ids.tolist() for window in windows[:: math.ceil(len(windows) / args.windows)]]
    targets = [i for window in chosen for i in window[1:]]
    size = len(tokenizer.decode_bytes(i for i in targets if i != end))
    print(header())
    print(f"# {args.text.name}, {len(chosen)} of {len(windows)} windows: {len(targets):,} tokens, {size:,} bytes")
    print("way                     bits/byte  loss against first  std. error  |difference|: median     99%  largest")
    exact = None
    for name, (dtype, settings) in WAYS[args.device].items():
        checkpoint = load_checkpoint(source, device=args.device, dtype=getattr(torch, dtype))
        log_p = _score(checkpoint, EngineConfig(prefix_caching=False, **settings), chosen)
        exact = log_p if exact is None else exact
        apart = [float(its.sum() - mine.sum()) for its, mine in zip(exact, log_p, strict=True)]
        off = np.abs(np.concatenate(log_p) - np.concatenate(exact))
        score = Score(-float(sum(each.sum() for each in log_p)), len(targets), size)
        error = statistics.stdev(apart) * math.sqrt(len(apart)) / len(targets)
        print(f"{name:22}  {score.bits_per_byte:9.5f}  {sum(apart) / len(targets):+18.6f}  {error:10.6f}"
              f"  {np.median(off):20.1e}  {np.quantile(off, 0.99):6.1e}  {off.max():7.1e}", flush=True)  # fmt: skip


def _score(checkpoint: Checkpoint, config: EngineConfig, windows: list[list[int]]) -> list[NDArray[np.float64]]:
    """Return the log-probabilities of each window's second and later tokens."""
    engine = Engine(checkpoint.model, checkpoint.tokenizer, config)
    completions = engine.generate(windows, SamplingParams(max_tokens=0, prompt_logprobs=0))
    reports = [each.events[-1].prompt for each in completions]
    return [np.array(report.token_logprobs[1:], np.float64) for report in reports if report]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", help="checkpoint folder (the one that ships)")
    parser.add_argument("--device", default="cpu", choices=list(WAYS))
    parser.add_argument("--text", type=Path, default=Path("LICENSE"), help="text to score (%(default)s)")
    parser.add_argument("--windows", type=int, default=8, help="windows to score, at least 2 (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
