"""Prefill of the engine on a GPU, against the naive forward and transformers' regular GPT-2.

    python -m benchmarks.engine.prefill

Random weights of the 124M shape, L = 2048, bf16. For each load it prints the tokens/s until the first token of the last
prompt. Then it prints how long running requests wait for a token while a long prompt is prefilled, in chunks of several
sizes and at once.
"""

import gc
import statistics
import time

import torch

from benchmarks.header import header
from benchmarks.shapes import numbered_tokens, random_model, random_prompts, regular_peer
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.model import Thoughtbubbles

LOADS = ((1, 128), (1, 512), (1, 2000), (16, 128), (64, 128), (8, 1000))
RUNS = 5


def main() -> None:
    """Print both tables."""
    print(header())
    model = random_model(2048, "cuda", torch.bfloat16)
    peer = regular_peer(model.config, "cuda", torch.bfloat16)
    print("prompts  tokens each  engine ms  tokens/s  naive forward tokens/s  transformers tokens/s")
    engine = _engine(model, 8192)
    for prompts, tokens in LOADS:
        ours = statistics.median([_prefill(engine, prompts, tokens) for _ in range(RUNS + 1)][1:])
        naive, theirs = (_forward(each, prompts, tokens) for each in (model, peer))
        total = prompts * tokens
        print(f"{prompts:7}  {tokens:11}  {1e3 * ours:9.1f}  {total / ours:8,.0f}  {total / naive:22,.0f}"
              f"  {total / theirs:21,.0f}", flush=True)  # fmt: skip
    print("\na prompt of 2,000 tokens is prefilled while 16 requests run: milliseconds between two of their tokens")
    print("tokens a step  median  longest  first token of the prompt")
    for share in (256, 512, 1024, 4096):
        print("{:13}  {:6.2f}  {:7.2f}  {:25.2f}".format(share, *_stall(_engine(model, share))), flush=True)


def _engine(model: Thoughtbubbles, max_prefill_tokens: int) -> Engine:
    config = EngineConfig(
        max_batch_size=64, cache_bytes=16 << 30, prefix_caching=False, max_prefill_tokens=max_prefill_tokens
    )
    engine = Engine(model, numbered_tokens(model.config.vocab_size), config)
    gc.freeze()  # as the server does: the collector does not scan what has been loaded
    return engine


def _prefill(engine: Engine, prompts: int, tokens: int) -> float:
    for i, ids in enumerate(random_prompts(engine.model.config, prompts, tokens)):
        engine.add(str(i), ids, SamplingParams(max_tokens=1, ignore_eos=True, temperature=0))
    torch.cuda.synchronize()
    start = time.perf_counter()
    while engine.has_work:
        engine.step()
    return time.perf_counter() - start


@torch.inference_mode()
def _forward(model: torch.nn.Module | None, prompts: int, tokens: int) -> float:
    """Return the seconds of one forward with all logits; NaN without the model or the memory."""
    if model is None:
        return float("nan")
    ids, times = torch.randint(256, 50_000, (prompts, tokens), device="cuda"), []
    try:
        for _ in range(RUNS + 1):
            torch.cuda.synchronize()
            start = time.perf_counter()
            output = model(ids)
            (output if isinstance(output, torch.Tensor) else output.logits)[:, -1].argmax(-1).tolist()
            times.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return float("nan")
    return statistics.median(times[1:])


def _stall(engine: Engine) -> tuple[float, float, float]:
    for i, ids in enumerate(random_prompts(engine.model.config, 16, 64)):
        engine.add(str(i), ids, SamplingParams(max_tokens=120, ignore_eos=True, temperature=0))
    last, gaps, sent, first = time.perf_counter(), list[float](), 0.0, 0.0
    for step in range(100_000):
        if step == 40:
            sent = time.perf_counter()
            long = random_prompts(engine.model.config, 1, 2000)[0]
            engine.add("long", long, SamplingParams(max_tokens=2, ignore_eos=True, temperature=0))
        events = engine.step()
        now = time.perf_counter()
        if any(event.request_id == "0" for event in events):
            gaps.append(now - last)
            last = now
        if not first and any(event.request_id == "long" for event in events):
            first = now - sent
        if not engine.has_work:
            break
    return 1e3 * statistics.median(gaps[2:]), 1e3 * max(gaps[2:]), 1e3 * first


if __name__ == "__main__":
    main()
