"""The test-time dial: loss and decode speed of a checkpoint at each `fork_ratio`.

    python -m benchmarks.engine.dial [CHECKPOINT] [--text FILE] [--windows 24] [--batch-sizes 1 8]

Loss is that of `evaluate`'s packed windows under the rule `causal`. Its difference from the loss at ratio 2, which the
checkpoint was trained with, has the standard error of the windows' differences. Speed is the engine's decode after
prompts from the same text: all ratios take turns, the first run is left out, and the median is over the others.
`docs.figures.dial` draws the result.
"""

import argparse
import math
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from benchmarks.header import header
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams, set_threads
from thoughtbubbles.model import Checkpoint, Thoughtbubbles, load_checkpoint, shipped_checkpoint
from thoughtbubbles.training.data.documents import read_documents
from thoughtbubbles.training.measures import Score, Window, packed_windows

RATIOS, PEER = (1, 1.25, 1.5, 2, 3, 4, 8), 2
PROMPT = 128
"""Tokens of each prompt."""
TOKEN_BYTES = 1 << 18
"""Cache bytes for a token of the shipped checkpoint at ratio 8, with pages divided among segments as for ratio 2."""


@dataclass
class Row:
    """The measurements at one ratio."""

    nats: list[float] = field(default_factory=list)
    """Of each window."""
    streams: int = 0
    """After the last fork layer, of all windows."""
    speeds: dict[int, float] = field(default_factory=dict)
    """Tokens/s at each batch size."""


def main() -> None:
    """Print the table."""
    args = _arguments()
    set_threads(args.threads)
    checkpoint = load_checkpoint(args.checkpoint or shipped_checkpoint(), device=args.device)
    tokenizer, end = checkpoint.tokenizer, checkpoint.tokenizer.end_of_text
    texts = tokenizer.encode_batch(list(read_documents([args.text])))
    ids = np.array([i for text in texts for i in (end, *text)], dtype=np.int64)
    windows = packed_windows(ids, checkpoint.model.config.block_size)
    chosen = windows[:: math.ceil(len(windows) / (args.windows or len(windows)))]
    targets = [i for window in chosen for i in window.ids[1:].tolist()]
    size = len(tokenizer.decode_bytes(i for i in targets if i != end))
    print(header())
    print(f"# {args.text.name}, {len(chosen)} of {len(windows)} windows: {len(targets):,} tokens, {size:,} bytes;"
          f" prompts of {PROMPT} tokens and {args.max_tokens} new ones, {args.runs} runs", flush=True)  # fmt: skip
    rows = {ratio: _score(checkpoint.model, chosen, ratio) for ratio in RATIOS}
    _time(_engine(checkpoint, max(args.batch_sizes), args.max_tokens), ids, args, rows)
    _print(rows, len(targets), size)


@torch.inference_mode()
def _score(model: Thoughtbubbles, windows: list[Window], ratio: float) -> Row:
    row = Row()
    for window in windows:
        ids = torch.from_numpy(window.ids).to(model.transformer.wte.weight.device)
        logits, forks = model(ids[None, :-1], rule="causal", ratio=ratio, return_forks=True)
        row.nats.append(F.cross_entropy(logits[0].float(), ids[1:], reduction="sum").item())
        row.streams += int((forks[-1].token_index < logits.shape[1]).sum())
    return row


def _engine(checkpoint: Checkpoint, requests: int, tokens: int) -> Engine:
    limits = EngineConfig(
        max_batch_size=requests,
        max_model_len=PROMPT + tokens,
        max_prefill_tokens=requests * PROMPT,
        cache_bytes=requests * (PROMPT + tokens) * TOKEN_BYTES,
        prefix_caching=False,
    )
    return Engine(checkpoint.model, checkpoint.tokenizer, limits)


def _time(engine: Engine, ids: NDArray[np.int64], args: argparse.Namespace, rows: dict[float, Row]) -> None:
    for n in args.batch_sizes:
        starts = np.linspace(0, len(ids) - PROMPT, n, dtype=int).tolist()
        prompts = [ids[start : start + PROMPT].tolist() for start in starts]
        runs = [[_decode(engine, prompts, ratio, args.max_tokens) for ratio in rows] for _ in range(args.runs + 1)]
        for row, speeds in zip(rows.values(), zip(*runs[1:], strict=True), strict=True):
            row.speeds[n] = statistics.median(speeds)


def _decode(engine: Engine, prompts: list[list[int]], ratio: float, tokens: int) -> float:
    """Return the tokens/s after the first token."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=0, fork_ratio=ratio)
    for i, prompt in enumerate(prompts):
        engine.add(str(i), prompt, params)
    events = engine.step()
    assert len(events) == len(prompts), "one step prefills all prompts"
    start = time.perf_counter()
    while engine.has_work:
        engine.step()
    return len(prompts) * (tokens - 1) / (time.perf_counter() - start)


def _print(rows: dict[float, Row], tokens: int, size: int) -> None:
    one, peer = rows[1], rows[PEER]
    heads = {n: f"  batch {n}: tokens/s" for n in peer.speeds}
    print("ratio  streams/token    loss  against 2  std. error  bits/byte",
          *(f"{head}  of 1's  of 2's" for head in heads.values()), sep="")  # fmt: skip
    for ratio, row in rows.items():
        score = Score(sum(row.nats), tokens, size)
        apart = [mine - its for mine, its in zip(row.nats, peer.nats, strict=True)]
        error = statistics.stdev(apart) * math.sqrt(len(apart)) / tokens if len(apart) > 1 else math.nan
        speeds = [f"{speed:{len(heads[n])}.0f}  {speed / one.speeds[n]:6.2f}  {speed / peer.speeds[n]:6.2f}"
                  for n, speed in row.speeds.items()]  # fmt: skip
        print(f"{ratio:5g}  {row.streams / tokens:13.2f}  {score.loss:6.4f}  {sum(apart) / tokens:+9.4f}  {error:10.4f}"
              f"  {score.bits_per_byte:9.4f}", *speeds, sep="")  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", help="checkpoint folder (the one that ships)")
    parser.add_argument(
        "--text", type=Path, default=Path("LICENSE"), help="text to score and to take prompts from (%(default)s)"
    )
    parser.add_argument("--windows", type=int, help="number of windows to score, spread evenly over the text (all)")
    parser.add_argument("--max-tokens", type=int, default=64, help="decoded after each prompt (%(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--runs", type=int, default=5, help="runs of each ratio and batch size (%(default)s)")
    parser.add_argument("--threads", type=int, help="(one fewer than torch would)")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
