"""Decode on a device: random weights of the 124M shape, against transformers' regular GPT-2 and recomputing all.

    python -m benchmarks.engine.device [--batch-sizes 1 16 64 256]

One run prints, in this order: decode tokens/s beside both peers and the floor; where a step's time goes; how the time
grows with the context; what a request of 512 tokens takes in the cache; and how far bfloat16 is from float32.

The floor of a step is what must be read, all weights and the keys and values of live streams, over the bandwidth that
a copy reaches here. Decode is counted from the step after the last prompt was taken in.
"""

import argparse
import gc
import statistics
import time
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.header import header
from benchmarks.shapes import numbered_tokens, random_model, random_prompts, regular_peer
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.model import Thoughtbubbles, load_checkpoint, shipped_checkpoint

PROMPT, NEW = 128, 128
RUNS = 3
AROUND = 24
"""Tokens on either side of a context that its median is taken over."""


@dataclass(frozen=True)
class Decoded:
    """How a batch decoded."""

    steps: list[float]
    """Seconds of each step after the prompts."""
    whole: float
    """Seconds with the prompts."""
    bytes_read: float
    """Keys and values that a step half-way must read."""


def main() -> None:
    """Print it all."""
    args = _arguments()
    print(header())
    bandwidth = _bandwidth()
    print(f"a copy moves {bandwidth / 1e12:.2f} TB/s, read and written")
    model = random_model(512, "cuda", torch.bfloat16)
    _table(model, args.batch_sizes, bandwidth)
    _profile(model, args.batch_sizes)
    _memory(model)
    _growth(random_model(2048, "cuda", torch.bfloat16), bandwidth)
    _exactness()


def _table(model: Thoughtbubbles, batch_sizes: list[int], bandwidth: float) -> None:
    peer = regular_peer(model.config, "cuda", torch.bfloat16)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    print(f"\nprompts of {PROMPT}, {NEW} new tokens, bf16, greedy; medians of {RUNS} runs; tokens/s")
    print("batch  engine decode  with prompts  step ms  floor ms  share  transformers  recompute all")
    for batch_size in batch_sizes:
        engine = _engine(model, batch_size)
        runs = [_decode(engine, batch_size, PROMPT, NEW) for _ in range(RUNS + 1)][1:]
        step = statistics.median(sum(run.steps) / (NEW - 1) for run in runs)  # the first token came with the prompt
        whole = statistics.median(run.whole for run in runs)
        floor = (weights + runs[0].bytes_read) / bandwidth
        theirs = _generate(peer, batch_size) if peer else float("nan")
        all_again = batch_size / _recompute(model, batch_size, PROMPT + NEW // 2)
        print(f"{batch_size:5}  {batch_size / step:13,.0f}  {batch_size * NEW / whole:12,.0f}  {1e3 * step:7.3f}"
              f"  {1e3 * floor:8.3f}  {floor / step:5.2f}  {theirs:12,.0f}  {all_again:13,.0f}",
              flush=True)  # fmt: skip


def _engine(model: Thoughtbubbles, batch_size: int) -> Engine:
    per_token = 2 * model.config.n_layer * model.config.n_embd * 2 * model.config.max_ratio
    config = EngineConfig(
        max_batch_size=batch_size, cache_bytes=int(1.3 * batch_size * model.config.block_size * per_token),
        prefix_caching=False, max_prefill_tokens=8192,
    )  # fmt: skip
    engine = Engine(model, numbered_tokens(model.config.vocab_size), config)
    gc.freeze()  # as the server does: what has been loaded is not looked through for garbage
    return engine


def _decode(engine: Engine, batch_size: int, prompt: int, new: int) -> Decoded:
    params = SamplingParams(max_tokens=new, ignore_eos=True, temperature=0)
    for i, ids in enumerate(random_prompts(engine.model.config, batch_size, prompt)):
        engine.add(str(i), ids, params)
    torch.cuda.synchronize()
    begun, steps, bytes_read = time.perf_counter(), list[float](), 0.0
    while engine.has_work:
        alone = not (engine.scheduler.waiting or engine.scheduler.arriving)
        start = time.perf_counter()
        engine.step()
        if alone:
            steps.append(time.perf_counter() - start)
        if len(steps) == new // 2:
            bytes_read = bytes_read or _live_bytes(engine)
    return Decoded(steps, time.perf_counter() - begun, bytes_read)


def _live_bytes(engine: Engine) -> float:
    """Σ segments streams × layers × 2 × D × 2, of all that run."""
    config = engine.model.config
    streams = [sum(request.state.streams(i) for request in engine.scheduler.running if request.state)
               for i in range(len(engine.cache.segments))]  # fmt: skip
    return sum(n * len(pages.segment.layers) * 2 * config.n_embd * 2
               for n, pages in zip(streams, engine.cache.segments, strict=True))  # fmt: skip


@torch.inference_mode()
def _generate(peer: torch.nn.Module, batch_size: int) -> float:
    ids = torch.randint(256, 50_000, (batch_size, PROMPT), device="cuda")
    times = []
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW,
                      do_sample=False, pad_token_id=0)  # type: ignore[operator]  # fmt: skip
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return batch_size * NEW / statistics.median(times[1:])


@torch.inference_mode()
def _recompute(model: Thoughtbubbles, batch_size: int, length: int) -> float:
    """Seconds of one token for a batch when every stream of the sequence is computed again; nan without the memory."""
    ids = torch.randint(256, 50_000, (batch_size, length), device="cuda")
    times = []
    try:
        for _ in range(4):
            torch.cuda.synchronize()
            start = time.perf_counter()
            model(ids)[:, -1].argmax(-1).tolist()
            times.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return float("nan")
    return statistics.median(times[1:])


def _profile(model: Thoughtbubbles, batch_sizes: list[int]) -> None:
    print("\nwhere a step's time goes: microseconds on the device, at about 150 tokens")
    for batch_size in batch_sizes:
        engine, steps = _engine(model, batch_size), 16
        params = SamplingParams(max_tokens=NEW, ignore_eos=True, temperature=0)
        for i, ids in enumerate(random_prompts(model.config, batch_size, PROMPT)):
            engine.add(str(i), ids, params)
        while engine.scheduler.waiting or engine.scheduler.arriving or not engine.scheduler.running:
            engine.step()
        for _ in range(8):
            engine.step()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            start = time.perf_counter()
            for _ in range(steps):
                engine.step()
            torch.cuda.synchronize()
            wall = (time.perf_counter() - start) / steps
        parts = sorted(((e.self_device_time_total / steps, e.key) for e in seen.key_averages()), reverse=True)
        busy = sum(time for time, _ in parts)
        named = ", ".join(f"{key[:24].strip('_')} {time:.0f}" for time, key in parts[:8])
        print(f"batch {batch_size}: step {1e6 * wall:.0f}, device busy {busy:.0f}: {named}", flush=True)


def _memory(model: Thoughtbubbles) -> None:
    engine = _engine(model, 1)
    engine.add("0", random_prompts(model.config, 1, 384)[0], SamplingParams(max_tokens=128, ignore_eos=True))
    worst, held, live = 0.0, 0, 0.0
    while engine.has_work:
        engine.step()
        if engine.scheduler.running and (state := engine.scheduler.running[0].state) and state.tokens >= 384:
            held, live = engine.cache.use().bytes, _live_bytes(engine)
            worst = max(worst, held / live)
    print(f"\na request of 512 tokens: {held / 1e6:.2f} MB held for {live / 1e6:.2f} MB of live keys and values, "
          f"{held / live:.3f} times; at most {worst:.3f} times from 384 tokens on")  # fmt: skip


def _growth(model: Thoughtbubbles, bandwidth: float) -> None:
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    print("\nL = 2048: inter-token time as the context grows")
    print("batch  context  step ms  against the first  floor ms  times its floor")
    for batch_size, contexts in ((1, [100, 500, 2000]), (64, [100, 500, 2000])):
        engine = _engine(model, batch_size)
        first = None
        for context in contexts:
            runs = [_decode(engine, batch_size, context - AROUND, 2 * AROUND) for _ in range(3)][1:]
            step = statistics.median(time for run in runs for time in run.steps[2:-1])
            floor = (weights + runs[0].bytes_read) / bandwidth
            first = first or step
            print(f"{batch_size:5}  {context:7}  {1e3 * step:7.3f}  {step / first:17.2f}  {1e3 * floor:8.3f}"
                  f"  {step / floor:15.2f}", flush=True)  # fmt: skip


@torch.inference_mode()
def _exactness() -> None:
    """The shipped checkpoint: greedy tokens in float32 against the oracle's, and log-probabilities in bfloat16."""
    print("\nthe shipped checkpoint, 16 prompts of 32 tokens and 96 greedy ones, against the naive float32 forward")
    exact = load_checkpoint(shipped_checkpoint(), device="cuda").model
    for dtype in (torch.float32, torch.bfloat16):
        checkpoint = load_checkpoint(shipped_checkpoint(), device="cuda", dtype=dtype)
        engine = Engine(checkpoint.model, checkpoint.tokenizer, EngineConfig(max_batch_size=16))
        prompts = torch.randint(256, 8000, (16, 32), generator=torch.Generator().manual_seed(0)).tolist()
        params = SamplingParams(max_tokens=96, ignore_eos=True, temperature=0)
        drawn = [list(c.token_ids) for c in engine.generate(prompts, params)]
        told = engine.generate([p + d for p, d in zip(prompts, drawn, strict=True)],
                               SamplingParams(max_tokens=0, prompt_logprobs=0))  # fmt: skip
        ids = torch.tensor([p + d for p, d in zip(prompts, drawn, strict=True)], device="cuda")
        logits = exact(ids)[:, 31:-1]
        equal = (logits.argmax(-1) == ids[:, 32:]).sum().item()
        wanted = exact(ids)[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
        naive = checkpoint.model(ids)[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
        ours = torch.tensor([c.events[0].prompt.token_logprobs[1:] for c in told if c.events[0].prompt], device="cuda")
        for name, other in (("engine", ours), ("naive", naive)):
            off = (other - wanted).abs().flatten()
            print(f"{str(dtype)[6:]}: {name} log-probabilities off by {off.median():.2e} (median), "
                  f"{off.quantile(0.99):.2e} (99%), {off.max():.2e} (most)")  # fmt: skip
        print(f"{str(dtype)[6:]}: {equal} of {16 * 96} greedy tokens are the float32 oracle's", flush=True)


def _bandwidth() -> float:
    """Bytes a second that a device-to-device copy reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target, times = torch.empty_like(source), []
    for _ in range(12):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return float(2 * source.nbytes / statistics.median(times))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 64, 256])
    return parser.parse_args()


if __name__ == "__main__":
    main()
