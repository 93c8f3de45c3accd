"""Where prefill on a GPU spends its time: products and attention in blocks of several sizes, and a profile of a step.

    python -m benchmarks.engine.kernels [--products] [--attention] [--profile]

Without an option all three. The 124M shape, bf16, random data. `--products` prints for each linear layer and number of
rows the microseconds of each choice of tiles, the fastest first, beside those of the library (cuBLAS) without what the
kernel fuses. `--attention` does so for the blocks of attention, each prompt with two streams per token. `--profile`
prints the kernels of one prefill of each load, with their share of the device's time, and how long the host took.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.engine.prefill import add_prompts, make_engine
from benchmarks.engine.timing import microseconds
from benchmarks.header import header
from benchmarks.shapes import random_model, shape_124m
from thoughtbubbles.engine.cuda.kernels import linear, packed_attention
from thoughtbubbles.engine.cuda.kernels.packed_attention import Blocks
from thoughtbubbles.engine.cuda.kernels.rows import Rows, Span
from thoughtbubbles.engine.cuda.kernels.tiles import Tiles

ROWS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FEW = 1024
"""The most rows for which programs may share inputs."""
TILES = (
    Tiles(64, 32, 128, 4, 4), Tiles(64, 64, 64, 4, 4), Tiles(64, 128, 64, 4, 4), Tiles(128, 64, 64, 4, 4),
    Tiles(128, 64, 64, 8, 4), Tiles(128, 128, 64, 4, 4),
    Tiles(128, 128, 64, 8, 3), Tiles(128, 128, 64, 8, 4), Tiles(128, 256, 64, 8, 3), Tiles(128, 256, 64, 8, 4),
    Tiles(256, 128, 64, 8, 3), Tiles(64, 256, 64, 4, 3),
)  # fmt: skip
SHARED = (
    Tiles(64, 32, 64, 4, 4, 2), Tiles(64, 64, 64, 4, 4, 2), Tiles(64, 64, 64, 4, 4, 4), Tiles(64, 128, 64, 4, 4, 3),
    Tiles(128, 64, 64, 4, 4, 4), Tiles(128, 64, 64, 8, 4, 2), Tiles(128, 128, 64, 8, 4, 3),
)  # fmt: skip
BLOCKS = (
    Blocks(64, 64, 4, 2), Blocks(64, 64, 4, 3), Blocks(64, 128, 4, 2), Blocks(128, 64, 4, 2), Blocks(128, 64, 4, 3),
    Blocks(128, 64, 8, 2), Blocks(128, 64, 8, 3), Blocks(128, 128, 4, 2), Blocks(128, 128, 8, 2),
    Blocks(128, 128, 8, 3),
)  # fmt: skip
LOADS = ((1, 128), (1, 2000), (64, 128), (8, 1000))
PACKS = ((1, 256, 0), (1, 2000, 0), (1, 4000, 0), (64, 128, 0), (64, 256, 0), (8, 1000, 0), (8, 2000, 0),
         (4, 512, 3000))  # fmt: skip
"""Requests, new streams of each, and its streams in the cache before."""


def main() -> None:
    """Print what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("products", "attention", "profile"):
        parser.add_argument(f"--{name}", action="store_true")
    chosen = vars(parser.parse_args())
    print(header())
    with torch.inference_mode():
        if chosen["products"] or not any(chosen.values()):
            _products()
        if chosen["attention"] or not any(chosen.values()):
            _attention()
    if chosen["profile"] or not any(chosen.values()):
        _profile()


@contextmanager
def _patched(module: Any, name: str, value: object) -> Iterator[None]:  # noqa: ANN401 - any module
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _random_rows(rows: int, *, streams: int = 1) -> Rows:
    """Return `rows` live rows, as a step has them where all are usual."""
    config = shape_124m(2048)
    lane = torch.zeros(1, dtype=torch.int32, device="cuda")
    made = Rows.zeros(lane, lane[None], page_size=16, rows=rows, most=rows, usual=rows, half=config.head_width // 2)
    made.live.fill_(rows)
    made.slot.copy_(torch.randperm(rows, device="cuda"))
    made.score.copy_(-torch.rand(rows, device="cuda") * streams)
    angle = torch.rand(rows, config.head_width // 2, device="cuda")
    made.cos.copy_(angle.cos())
    made.sin.copy_(angle.sin())
    return made


def _products() -> None:
    width = shape_124m(2048).n_embd
    with torch.device("cuda"):
        layers = {"qkv": nn.Linear(width, 3 * width), "attention": nn.Linear(width, width),
                  "fc": nn.Linear(width, 4 * width), "mlp": nn.Linear(4 * width, width)}  # fmt: skip
    print("\nproduct    rows  TFLOP/s  microseconds of each choice: rows, columns, inputs, warps, stages, parts")
    for name, layer in layers.items():
        layer.to(torch.bfloat16)
        for rows in ROWS:
            _compare(name, layer, rows)


def _compare(name: str, layer: nn.Linear, rows: int) -> None:
    """Print the time of a product of `rows` rows with each choice of tiles, and by the library."""
    x = torch.randn(rows, layer.in_features, device="cuda", dtype=torch.bfloat16)
    out = torch.randn(rows, layer.out_features, device="cuda", dtype=torch.bfloat16)
    launch = _launch_of(name, layer, x, out)
    took = {"library": microseconds(lambda: torch.mm(x, layer.weight.T, out=out))}
    shared = SHARED if name in ("attention", "mlp") and rows <= FEW else ()
    with _patched(linear, "LIBRARY_ROWS", 1 << 30):
        took["now"] = microseconds(launch)
        for each in (*TILES, *shared):
            kind = f"{each.rows},{each.columns},{each.depth},{each.warps},{each.stages},{each.parts}"
            with _patched(linear, "tiles_of", lambda *_, each=each: each):
                took[kind] = _attempt(launch)
    best = sorted(took.items(), key=lambda item: item[1])
    flops = 2 * rows * layer.weight.numel()
    print(f"{name:9} {rows:5}  {flops / best[0][1] / 1e6:7.0f}  "
          + "  ".join(f"{kind}: {time:.1f}" for kind, time in best[:6])
          + f"  | library: {took['library']:.1f}, now: {took['now']:.1f}", flush=True)  # fmt: skip


def _launch_of(name: str, layer: nn.Linear, x: Tensor, out: Tensor) -> Callable[[], object]:
    """Return a launch of the product as the layers of a step make it."""
    config, of = shape_124m(2048), _random_rows(len(x))
    if name == "fc":
        return lambda: linear.gelu_linear(x=x, layer=layer, out=out, rows=of, tanh=False)
    if name == "qkv":
        shape = (5, len(x), config.n_head, config.head_width)
        queries, keys, values, *recent = torch.empty(shape, device="cuda", dtype=torch.bfloat16)
        keys, values = (each.view(config.n_head, len(x), config.head_width) for each in (keys, values))
        return lambda: linear.project_heads(x=x, layer=layer, queries=queries, keys=keys, values=values, rows=of,
                                            scored=True, first=False, recent=linear.Recent(*recent))  # fmt: skip
    sums = torch.empty(8 * out.numel(), device="cuda")
    return lambda: linear.residual_linear(x=x, layer=layer, residual=out, rows=of, scratch=sums)


def _attempt(launch: Callable[[], object]) -> float:
    """Return the microseconds of a launch; infinite if there is too little shared memory for it."""
    try:
        return microseconds(launch)
    except Exception as error:
        print(f"# {type(error).__name__}: {str(error)[:80]}")
        return float("inf")


def _attention() -> None:
    print("\nattention of new streams         TFLOP/s  microseconds of each choice: queries, keys, warps, stages")
    for requests, streams, cached in PACKS:
        launch = _attention_of(requests, streams, cached)
        took = {"now": microseconds(launch)}
        for each in BLOCKS:
            with _patched(packed_attention, "blocks_of", lambda *_, each=each: each):
                took[f"{each.queries},{each.keys},{each.warps},{each.stages}"] = _attempt(launch)
        best = sorted(took.items(), key=lambda item: item[1])
        flops = 4 * shape_124m(2048).n_embd * requests * (streams * (streams + 1) // 2 + streams * cached)
        print(f"{requests:3} x {streams:4} after {cached:4} streams  {flops / best[0][1] / 1e6:7.0f}  "
              + "  ".join(f"{kind}: {time:.1f}" for kind, time in best), flush=True)  # fmt: skip


def _attention_of(requests: int, streams: int, cached: int) -> Callable[[], None]:
    """Return a launch for requests with so many new streams each, after so many in pages dealt at random."""
    config = shape_124m(2048)
    heads, width = config.n_head, config.head_width
    q, k, v, out = torch.randn(4, requests * streams, heads, width, device="cuda", dtype=torch.bfloat16)
    pages = -(-(cached + streams) // 16)
    keys, values = torch.randn(2, heads, requests * pages * 16, width, device="cuda", dtype=torch.bfloat16)
    table = torch.randperm(requests * pages, device="cuda").int().view(requests, pages)
    lane = torch.arange(requests, dtype=torch.int32, device="cuda")
    count = torch.full_like(lane, streams)
    span = Span(16, table, lane, lane * streams, count, count + cached)
    return lambda: packed_attention.packed_attention(
        queries=q, recent=linear.Recent(k, v), keys=keys, values=values, span=span, out=out, most=streams
    )


def _profile() -> None:
    model = random_model(2048, "cuda", torch.bfloat16)
    engine = make_engine(model, 8192)
    for prompts, tokens in LOADS:
        for _ in range(3):
            add_prompts(engine, prompts, tokens)
            while engine.has_work:
                engine.step()
        add_prompts(engine, prompts, tokens)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            start = time.perf_counter()
            while engine.has_work:
                engine.step()
            wall = time.perf_counter() - start
        kernels = [event for event in profile.events() if str(event.device_type).endswith("CUDA")]
        busy = sum(event.device_time_total for event in kernels)
        span = max(e.time_range.end for e in kernels) - min(e.time_range.start for e in kernels)
        print(f"\n{prompts} x {tokens}: {1e3 * wall:.2f} ms; from the first kernel's start to the last one's end"
              f" {span / 1e3:.2f} ms, of which kernels run {busy / 1e3:.2f} ms")  # fmt: skip
        total: dict[str, list[float]] = {}
        for event in kernels:
            total.setdefault(event.name[:60], []).append(event.device_time_total)
        for name, times in sorted(total.items(), key=lambda item: -sum(item[1]))[:16]:
            print(f"  {sum(times):9.0f} us  {100 * sum(times) / busy:5.1f}%  {len(times):4} x  {name}")
        print(flush=True)


if __name__ == "__main__":
    main()
