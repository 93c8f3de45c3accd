"""Rule `dynamic`: recomputing the streams that a token changed, against recomputing all, on real text.

    python -m benchmarks.engine.dynamic [CHECKPOINT] [--text FILE] [--contexts 256] [--batch-sizes 1 8] [--ratio 2]

Texts are fed token by token through a window around each context. Each token is computed from the cached state of the
earlier ones; every few tokens the whole text is computed too, and the logits of both are compared. Times are processor
time of one thread: the mean over the tokens of a run, since they vary much, and the median over runs. A second table
has the number of streams that are computed for a token, by segment.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.header import header
from thoughtbubbles.engine import set_threads
from thoughtbubbles.engine.cache.fork_cache import most_streams, segments
from thoughtbubbles.engine.portable.block import Attend
from thoughtbubbles.engine.portable.layers import PackedModel
from thoughtbubbles.engine.revising.forward import RevisingForward
from thoughtbubbles.engine.revising.layers import PackedLayers
from thoughtbubbles.engine.revising.state import RevisableState
from thoughtbubbles.engine.scoring import pick
from thoughtbubbles.model import Selection, Streams, Thoughtbubbles, load_checkpoint, shipped_checkpoint
from thoughtbubbles.training.data.documents import read_documents

WINDOW = 16
"""Tokens on either side of a context that a mean is taken over."""
COMPARED_EVERY = 8
"""Tokens after which all is recomputed."""

Texts = list[list[int]]


class Counting(PackedModel):
    """Counts the streams that each layer computes."""

    def __init__(self, model: Thoughtbubbles) -> None:
        super().__init__(model)
        self.rows: list[int] = []

    def each(
        self, layers: range, x: Tensor, positions: Tensor, score: Tensor, attend: Callable[[int], Attend]
    ) -> Iterator[int]:
        """Count the streams and run the layers."""
        for layer in super().each(layers, x, positions, score, attend):
            self.rows.append(len(x))
            yield layer


@torch.inference_mode()
def main() -> None:
    """Print the tables."""
    args = _arguments()
    set_threads(1)
    checkpoint = load_checkpoint(args.checkpoint or shipped_checkpoint())
    ids = [i for text in read_documents([args.text]) for i in checkpoint.tokenizer.encode(text)]
    selection = Selection.of(checkpoint.model.config, "dynamic", args.ratio)
    print(header())
    print("batch  context  recompute all ms  what changed ms  faster  slowest token ms  logits differ by")
    for batch_size in args.batch_sizes:
        for context in args.contexts:
            batches = _windows(ids, args.runs, batch_size, context + WINDOW)
            _print_times(checkpoint.model, selection, batches, context)
    print("context  layers  streams  only the new token's  median   mean")
    for context in args.contexts:
        texts = _windows(ids, args.runs, 1, context + WINDOW)
        _print_streams(checkpoint.model, selection, texts, context)


def _windows(ids: list[int], runs: int, batch_size: int, length: int) -> list[Texts]:
    """Return a batch of texts for each run, spread evenly over the whole text."""
    step = (len(ids) - length) // (runs * batch_size)
    texts = [ids[step * i : step * i + length] for i in range(runs * batch_size)]
    return [texts[run::runs] for run in range(runs)]


def _print_times(model: Thoughtbubbles, selection: Selection, batches: list[Texts], context: int) -> None:
    packed = PackedModel(model)
    forward = RevisingForward(model, PackedLayers(lambda: packed))
    runs = [_run(forward, selection, texts, context) for texts in batches]
    whole, changed = (statistics.median(statistics.mean(run[way]) for run in runs) for way in ("whole", "changed"))
    slowest, difference = (max(max(run[what]) for run in runs) for what in ("changed", "difference"))
    print(f"{len(batches[0]):5}  {context:7}  {whole:16.1f}  {changed:15.1f}  {whole / changed:5.1f}x"
          f"  {slowest:16.1f}  {difference:16.1e}", flush=True)  # fmt: skip


def _run(forward: RevisingForward, selection: Selection, texts: Texts, context: int) -> dict[str, list[float]]:
    """Return the milliseconds of both ways, and the largest difference of their logits."""
    run: dict[str, list[float]] = {"whole": [], "changed": [], "difference": []}
    for length, logits, ms in _feed(forward, selection, texts, context):
        run["changed"].append(ms)
        if length % COMPARED_EVERY == 0:
            start = time.process_time()
            expected = _recompute(forward.model, selection, [text[:length] for text in texts])
            run["whole"].append(1000 * (time.process_time() - start))
            run["difference"].append((logits - expected).abs().max().item())
    return run


def _feed(
    forward: RevisingForward, selection: Selection, texts: Texts, context: int
) -> Iterator[tuple[int, Tensor, float]]:
    """Feed the tokens around a context, one of each text at a time; yield length, logits and milliseconds of each."""
    config, like = forward.model.config, forward.model.transformer.wte.weight
    states = [RevisableState(config, selection, len(text), like) for text in texts]
    forward.extend(states, [text[: context - WINDOW] for text in texts])
    for length in range(context - WINDOW + 1, context + WINDOW + 1):
        start = time.process_time()
        revised = forward.extend(states, [text[:length] for text in texts])
        ms = 1000 * (time.process_time() - start)
        yield length, torch.stack([each.logits for each in revised]), ms


def _recompute(model: Thoughtbubbles, selection: Selection, texts: Texts) -> Tensor:
    """Return the logits (B,V) of the last tokens, computed from every stream of all texts."""
    streams, _ = model.streams(torch.tensor(texts), selection)
    row = torch.arange(len(texts))[:, None]
    token = torch.where(streams.token_index == streams.tokens - 1, row, len(texts)).flatten()
    last = Streams(streams.x.flatten(0, 1)[None], streams.score.flatten()[None], token[None], len(texts))
    return model.readout(pick(last, row[:, 0]))[0]


def _print_streams(model: Thoughtbubbles, selection: Selection, batches: list[Texts], context: int) -> None:
    """Print for each segment how many streams are computed for a token, and how many exist."""
    packed = Counting(model)
    forward, layers = RevisingForward(model, PackedLayers(lambda: packed)), model.config.n_layer
    tokens = [packed.rows[-layers:] for texts in batches for _ in _feed(forward, selection, texts, context)]
    most = most_streams(model.config, selection, context)
    for segment, streams in zip(segments(model.config), most, strict=True):
        if segment.layers:
            computed = [rows[segment.layers.start] for rows in tokens]
            alone = sum(n <= 1 << segment.index for n in computed) / len(computed)
            print(f"{context:7}  {segment.layers.start:3}-{segment.layers[-1]:2}  {streams:7}  {alone:22.0%}"
                  f"  {statistics.median(computed):6.0f}  {statistics.mean(computed):5.1f}", flush=True)  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", help="checkpoint folder (the one that ships)")
    parser.add_argument(
        "--text", type=Path, default=Path("LICENSE"), help="text to feed, read as in training (%(default)s)"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--contexts", type=int, nargs="+", default=[256])
    parser.add_argument("--ratio", type=float, help="κ / L (the model's own)")
    parser.add_argument("--runs", type=int, default=5, help="batches of texts (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
