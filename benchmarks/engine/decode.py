"""Decode speed of the engine, against transformers' regular GPT-2 and against recomputing the whole sequence.

    python -m benchmarks.engine.decode [CHECKPOINT] [--peers] [--batch-sizes 1 8] [--contexts 32 480]
    python -m benchmarks.engine.decode --device cuda --peers [--parts speed growth profile memory exactness]

On a CPU it decodes with the shipped checkpoint, elsewhere with random weights of the 124M shape. The parts:

- `speed`: tokens/s of all requests together, of decode alone and with the prompts. With `--peers` two others take turns
  with the engine: the engine with a model of the same shape without forks, of random weights, and transformers, whose
  tokens/s include the prompts. Published code recomputes: the whole sequence for each token.
- `growth`: inter-token time at each context, from a run that decodes up to the longest.
- `profile`: which kernels a step's time goes to, at about 150 tokens. A kernel that starts before the one before it has
  ended also counts the time that it waits: together they take longer than a step.
- `memory`: bytes of the cache pages of one request of 512 tokens, over the bytes of its keys and values.
- `exactness`: log-probabilities and greedy tokens of the shipped checkpoint against the naive float32 forward's.

On a GPU `speed` and `growth` also print a step's floor: the time to read all weights, and the keys and values of all
streams, at the bandwidth that a copy reaches. Medians are taken over runs; one run before them is left out.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.arguments import parse_arguments
from benchmarks.engine.timing import device_seconds
from benchmarks.header import header
from benchmarks.shapes import numbered_tokens, random_model, random_prompts, regular_peer
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams, set_threads
from thoughtbubbles.model import Thoughtbubbles, Tokenizer, load_checkpoint, shipped_checkpoint

NEW = 128
"""Tokens that each request of `speed` decodes."""
WINDOW = 16
"""Tokens on either side of a context that its median is taken over."""
NAN = float("nan")
GREEDY = {"temperature": 0.0}
PARTS = ("speed", "growth", "profile", "memory", "exactness")
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"dtypes": ["float32", "bfloat16"], "batch_sizes": [1, 8], "contexts": [32, 480], "growth_batch_sizes": None,
            "prompt_tokens": 16, "top_p": 0.95, "parts": ["speed", "growth"]},
    "cuda": {"dtypes": ["bfloat16"], "batch_sizes": [1, 16, 64, 256], "contexts": [100, 500, 2000],
             "growth_batch_sizes": [1, 64], "prompt_tokens": 128, "top_p": 1.0, "parts": list(PARTS)},
}  # fmt: skip
"""Options that are not given, by the kind of device."""


@dataclass
class Decoded:
    """How a batch decoded."""

    steps: list[float] = field(default_factory=list)
    """Seconds of each step after every request's first token."""
    seconds: float = 0.0
    """Of all steps, the prompts' included."""
    cached: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Bytes of allocated cache pages and of keys and values, which a step must read, by the number of steps before."""


def main() -> None:
    """Print a table for each part."""
    args = _arguments()
    set_threads(args.threads)
    print(header())
    bandwidth = _bandwidth() if args.device != "cpu" else None
    if bandwidth is not None:
        print(f"a copy moves {bandwidth / 1e12:.2f} TB/s, read and written")
    for part in args.parts:
        {"speed": _speed, "growth": _growth, "profile": _profile, "memory": _memory, "exactness": _exactness}[part](
            args, bandwidth
        )


def _speed(args: argparse.Namespace, bandwidth: float | None) -> None:
    print(f"\nprompts of {args.prompt_tokens} tokens, {NEW} new ones, greedy; tokens/s; medians of {args.runs} runs")
    print("precision  batch  engine decode  with prompts  step ms  floor ms  share  without forks  engine over it"
          "  transformers  with prompts over it  recompute all")  # fmt: skip
    for dtype in args.dtypes:
        model, tokenizer = _model(args, dtype, 512)
        peer = regular_peer(model.config, args.device, getattr(torch, dtype)) if args.peers else None
        unforked = _without_forks(model) if args.peers else None
        for batch_size in args.batch_sizes:
            engine = _engine(model, tokenizer, batch_size)
            prompts = random_prompts(model.config, batch_size, args.prompt_tokens)
            other = _engine(unforked, tokenizer, batch_size) if unforked else None
            runs, others, theirs = _by_turns(engine, other, prompts, peer, args)
            step, without = _step(runs), _step(others) if others else NAN
            whole = batch_size * NEW / statistics.median(run.seconds for run in runs)
            again = batch_size / _recompute(model, batch_size, args.prompt_tokens + NEW // 2, args.runs)
            floor = _floor(model, runs[0].cached[NEW // 2][1], bandwidth)
            print(f"{dtype:>9}  {batch_size:5}  {batch_size / step:13,.0f}  {whole:12,.0f}  {1e3 * step:7.3f}"
                  f"  {1e3 * floor:8.3f}  {floor / step:5.2f}  {batch_size / without:13,.0f}  {without / step:14.2f}"
                  f"  {theirs:12,.0f}  {whole / theirs:20.2f}  {again:13,.0f}", flush=True)  # fmt: skip


def _step(runs: Sequence[Decoded]) -> float:
    """Return the seconds of a step of runs of `speed`; their first token came with the prompt."""
    return statistics.median(sum(run.steps) / (NEW - 1) for run in runs)


def _without_forks(model: Thoughtbubbles) -> Thoughtbubbles:
    """Return a model of the same shape without forks, of random weights that fit 16 bits, as the checkpoint's do."""
    weight, config = model.transformer.wte.weight, model.config
    with torch.device(weight.device):
        regular = Thoughtbubbles(replace(config, fork_layers=(), max_block_size=config.block_size))
    return regular.eval().to(torch.bfloat16).to(weight.dtype)


def _by_turns(
    engine: Engine, other: Engine | None, prompts: list[list[int]], peer: torch.nn.Module | None,
    args: argparse.Namespace,
) -> tuple[list[Decoded], list[Decoded], float]:  # fmt: skip
    """Return both engines' runs and the peer's tokens/s (NaN without one), which take turns."""
    ids, seconds = torch.tensor(prompts, device=args.device), list[float]()
    runs, others = list[Decoded](), list[Decoded]()
    for _ in range(args.runs + 1):
        runs.append(_decode(engine, prompts, NEW, GREEDY, [NEW // 2]))
        if other is not None:
            others.append(_decode(other, prompts, NEW, GREEDY, []))
        if peer is not None:
            seconds.append(_timed(partial(_generate, peer, ids)))
    theirs = len(prompts) * NEW / statistics.median(seconds[1:]) if peer is not None else NAN
    return runs[1:], others[1:], theirs


def _growth(args: argparse.Namespace, bandwidth: float | None) -> None:
    dtype = args.dtypes[0]
    model, tokenizer = _model(args, dtype, 2048)
    sampling = GREEDY if args.top_p == 1 else {"top_p": args.top_p, "seed": 0}
    print(f"\ninter-token time as the context grows; {dtype}, L = {model.config.block_size}, {sampling}")
    print("batch  context  step ms  against the first  tokens/s  recompute ms  cache is faster  floor ms"
          "  times its floor")  # fmt: skip
    for batch_size in args.growth_batch_sizes or args.batch_sizes:
        engine, last = _engine(model, tokenizer, batch_size), max(args.contexts) + WINDOW
        prompts = random_prompts(model.config, batch_size, 1)
        runs = [_decode(engine, prompts, last - 1, sampling, args.contexts) for _ in range(args.runs + 1)][1:]
        steps = [statistics.median(seconds for run in runs for seconds in run.steps[at - WINDOW : at + WINDOW])
                 for at in args.contexts]  # fmt: skip
        for context, step in zip(args.contexts, steps, strict=True):
            again = _recompute(model, batch_size, context, args.runs)
            floor = _floor(model, runs[0].cached[context][1], bandwidth)
            print(f"{batch_size:5}  {context:7}  {1e3 * step:7.3f}  {step / steps[0]:17.2f}  {batch_size / step:8,.0f}"
                  f"  {1e3 * again:12.2f}  {again / step:14.1f}x  {1e3 * floor:8.3f}  {step / floor:15.2f}",
                  flush=True)  # fmt: skip


def _profile(args: argparse.Namespace, _: float | None) -> None:
    print("\nwhere a step's time goes: microseconds on the device, at about 150 tokens")
    model, tokenizer = _model(args, args.dtypes[0], 512)
    activity = ProfilerActivity.CPU if args.device == "cpu" else ProfilerActivity.CUDA
    for batch_size in args.batch_sizes:
        engine, steps = _engine(model, tokenizer, batch_size), 16
        started = _add(engine, random_prompts(model.config, batch_size, args.prompt_tokens), NEW, GREEDY)
        while started:
            started -= {event.request_id for event in engine.step()}
        for _step in range(8):
            engine.step()
        with profile(activities=[activity]) as seen:
            start = time.perf_counter()
            for _step in range(steps):
                engine.step()
            _synchronize()
            wall = (time.perf_counter() - start) / steps
        times = ((e.self_cpu_time_total if args.device == "cpu" else e.self_device_time_total, e.key)
                 for e in seen.key_averages())  # fmt: skip
        parts = sorted(((total / steps, key) for total, key in times), reverse=True)
        named = ", ".join(f"{key[:24].strip('_')} {each:.0f}" for each, key in parts[:8])
        busy = sum(each for each, _ in parts)
        print(f"batch {batch_size}: step {1e6 * wall:.0f}, device busy {busy:.0f}: {named}", flush=True)


def _memory(args: argparse.Namespace, _: float | None) -> None:
    model, tokenizer = _model(args, args.dtypes[0], 512)
    engine = _engine(model, tokenizer, 1)
    run = _decode(engine, random_prompts(model.config, 1, 384), 128, {}, range(127))
    cached = [(pages, live) for pages, live in run.cached.values() if live]
    ratios, (pages, live) = [each[0] / each[1] for each in cached], cached[-1]
    print(f"\na request of 512 tokens: {pages / 1e6:.2f} MB of pages for {live / 1e6:.2f} MB of keys and values, "
          f"{ratios[-1]:.3f} times; at most {max(ratios):.3f} times from 384 tokens on")  # fmt: skip


@torch.inference_mode()
def _exactness(args: argparse.Namespace, _: float | None) -> None:
    print("\nthe shipped checkpoint, 16 prompts of 32 tokens and 96 greedy ones, against the naive float32 forward")
    exact = load_checkpoint(shipped_checkpoint(), device=args.device).model
    for dtype in ("float32", "bfloat16"):
        checkpoint = load_checkpoint(shipped_checkpoint(), device=args.device, dtype=getattr(torch, dtype))
        engine = Engine(checkpoint.model, checkpoint.tokenizer, EngineConfig(max_batch_size=16))
        prompts = torch.randint(256, 8000, (16, 32), generator=torch.Generator().manual_seed(0)).tolist()
        params = SamplingParams(max_tokens=96, ignore_eos=True, temperature=0)
        drawn = [list(c.token_ids) for c in engine.generate(prompts, params)]
        whole = [p + d for p, d in zip(prompts, drawn, strict=True)]
        scored = engine.generate(whole, SamplingParams(max_tokens=0, prompt_logprobs=0))
        ids = torch.tensor(whole, device=args.device)
        logits = exact(ids)[:, :-1]
        equal = (logits[:, 31:].argmax(-1) == ids[:, 32:]).sum().item()
        expected = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
        naive = checkpoint.model(ids)[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
        rows = [c.events[0].prompt.token_logprobs[1:] for c in scored if c.events[0].prompt]
        for name, other in (("engine", torch.tensor(rows, device=args.device)), ("naive", naive)):
            off = (other - expected).abs().flatten()
            print(f"{dtype}: {name} log-probabilities off by {off.median():.2e} (median), "
                  f"{off.quantile(0.99):.2e} (99%), {off.max():.2e} (most)")  # fmt: skip
        print(f"{dtype}: {equal} of {16 * 96} greedy tokens are the float32 oracle's", flush=True)


def _model(args: argparse.Namespace, dtype: str, block_size: int) -> tuple[Thoughtbubbles, Tokenizer]:
    """Return the checkpoint's model, or on a GPU without one a random model of L = `block_size`."""
    if args.checkpoint is None and args.device != "cpu":
        model = random_model(block_size, args.device, getattr(torch, dtype))
        return model, numbered_tokens(model.config.vocab_size)
    folder = args.checkpoint or shipped_checkpoint()
    checkpoint = load_checkpoint(folder, device=args.device, dtype=getattr(torch, dtype))
    return checkpoint.model, checkpoint.tokenizer


def _engine(model: Thoughtbubbles, tokenizer: Tokenizer, batch_size: int) -> Engine:
    config, element_size = model.config, model.transformer.wte.weight.element_size()
    per_token = 2 * config.n_layer * config.n_embd * element_size * config.max_ratio
    engine = Engine(model, tokenizer, EngineConfig(
        max_batch_size=batch_size, cache_bytes=int(1.3 * batch_size * config.block_size * per_token),
        prefix_caching=False, max_prefill_tokens=8192,
    ))  # fmt: skip
    gc.freeze()  # as the server does: the collector does not scan what has been loaded
    return engine


def _add(engine: Engine, prompts: list[list[int]], new: int, sampling: dict[str, Any]) -> set[str]:
    """Add a request for each prompt and return their ids."""
    for i, ids in enumerate(prompts):
        engine.add(str(i), ids, SamplingParams(max_tokens=new, ignore_eos=True, **sampling))
    return set(map(str, range(len(prompts))))


def _decode(
    engine: Engine, prompts: list[list[int]], new: int, sampling: dict[str, Any], look_at: Sequence[int]
) -> Decoded:
    """Decode `new` tokens of each prompt; look at the cache when the steps `look_at` are done."""
    first, run = _add(engine, prompts, new, sampling), Decoded()
    _synchronize()
    begin = time.perf_counter()
    while engine.has_work:
        if not first and len(run.steps) in look_at:
            run.cached[len(run.steps)] = engine.cache.use().bytes, _bytes_to_read(engine)
        decoding, start = not first, time.perf_counter()
        first -= {event.request_id for event in engine.step()}
        if decoding:
            run.steps.append(time.perf_counter() - start)
    run.seconds = time.perf_counter() - begin
    return run


def _bytes_to_read(engine: Engine) -> float:
    """Return the bytes of keys and values of all running requests: Σ segments streams × layers × 2 × D × element."""
    states = [request.state for request in engine.scheduler.running if request.state]
    per_layer = 2 * engine.model.config.n_embd * engine.model.transformer.wte.weight.element_size()
    return sum(sum(state.streams(i) for state in states) * len(pages.segment.layers) * per_layer
               for i, pages in enumerate(engine.cache.segments))  # fmt: skip


def _floor(model: Thoughtbubbles, bytes_read: float, bandwidth: float | None) -> float:
    """Return the seconds that reading the weights and so many bytes takes; NaN on a CPU, whose caches hold weights."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return (weights + bytes_read) / bandwidth if bandwidth is not None else NAN


@torch.inference_mode()
def _generate(peer: Any, ids: Tensor) -> None:  # noqa: ANN401 - transformers' own
    peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW,
                  do_sample=False, pad_token_id=0)  # fmt: skip


@torch.inference_mode()
def _recompute(model: Thoughtbubbles, batch_size: int, length: int, runs: int) -> float:
    """Return the seconds of one token for a batch without a cache; NaN if memory does not suffice."""
    ids = torch.randint(model.config.vocab_size, (batch_size, length), device=model.transformer.wte.weight.device)
    try:
        times = [_timed(lambda: model(ids)[:, -1].argmax(-1).tolist()) for _ in range(runs + 1)]
    except torch.OutOfMemoryError:
        return NAN
    return statistics.median(times[1:])


def _timed(work: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _bandwidth() -> float:
    """Return the bytes a second that a device-to-device copy reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    times = [device_seconds(lambda: target.copy_(source)) for _ in range(12)]
    return float(2 * source.nbytes / statistics.median(times))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", help="checkpoint folder (the shipped one; on a GPU random weights)")
    parser.add_argument("--device", default="cpu", choices=list(DEFAULTS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="(on a CPU speed and growth, on a GPU all)")
    parser.add_argument("--peers", action="store_true", help="run transformers' GPT-2 too, which must be installed")
    parser.add_argument(
        "--dtypes", nargs="+", choices=["float32", "bfloat16"], help="of speed; the first of the others"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+")
    parser.add_argument("--growth-batch-sizes", type=int, nargs="+", help="of growth (those of --batch-sizes)")
    parser.add_argument("--contexts", type=int, nargs="+", help="of growth, in tokens; at least 16")
    parser.add_argument("--prompt-tokens", type=int, help="of each prompt of speed")
    parser.add_argument("--top-p", type=float, help="of growth; 1 is greedy")
    parser.add_argument("--runs", type=int, default=3, help="that medians are taken over (%(default)s)")
    parser.add_argument("--threads", type=int, help="of the CPU (one fewer than torch would use)")
    return parse_arguments(parser, DEFAULTS)


if __name__ == "__main__":
    main()
