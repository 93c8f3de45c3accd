"""Prefill of the engine on a GPU, against the naive forward and transformers' regular GPT-2.

    python -m benchmarks.engine.prefill

Random weights of the 124M shape, L = 2048, bf16. For each load it prints the tokens/s until the first token of the last
prompt, and the model FLOP utilisation: the floating-point operations that the streams really computed need, in products
and causal attention, over the time, as a share of what a large product of random bf16 matrices reaches on the same GPU.
Then it prints how long running requests wait for a token while a long prompt is prefilled, in chunks of several
sizes and at once.
"""

import gc
import statistics
import time

import torch

from benchmarks.header import header
from benchmarks.shapes import numbered_tokens, random_model, random_prompts, regular_peer
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.model import Selection, Thoughtbubbles

LOADS = ((1, 128), (1, 512), (1, 2000), (16, 128), (64, 128), (8, 1000))
RUNS = 5


def main() -> None:
    """Print both tables."""
    print(header())
    model = random_model(2048, "cuda", torch.bfloat16)
    peer = regular_peer(model.config, "cuda", torch.bfloat16)
    ceiling = _ceiling()
    print(f"# a product of 8192 x 8192 x 8192 in bf16: {ceiling / 1e12:.0f} TFLOP/s")
    print("prompts  tokens each  engine ms  tokens/s  utilisation  naive forward tokens/s  transformers tokens/s")
    engine = make_engine(model, 8192)
    for prompts, tokens in LOADS:
        ours = statistics.median([_prefill(engine, prompts, tokens) for _ in range(RUNS + 1)][1:])
        naive, theirs = (_forward(each, prompts, tokens) for each in (model, peer))
        total, used = prompts * tokens, _flops(model, prompts, tokens) / ours / ceiling
        print(f"{prompts:7}  {tokens:11}  {1e3 * ours:9.2f}  {total / ours:8,.0f}  {used:11.1%}  {total / naive:22,.0f}"
              f"  {total / theirs:21,.0f}", flush=True)  # fmt: skip
    print("\na prompt of 2,000 tokens is prefilled while 16 requests run: milliseconds between two of their tokens")
    print("tokens a step  median  longest  first token of the prompt")
    for share in (256, 512, 1024, 4096):
        print("{:13}  {:6.2f}  {:7.2f}  {:25.2f}".format(share, *_stall(make_engine(model, share))), flush=True)


def make_engine(model: Thoughtbubbles, max_prefill_tokens: int) -> Engine:
    """Return an engine that prefills as many tokens a step, without prefix caching."""
    config = EngineConfig(
        max_batch_size=64, cache_bytes=16 << 30, prefix_caching=False, max_prefill_tokens=max_prefill_tokens
    )
    engine = Engine(model, numbered_tokens(model.config.vocab_size), config)
    gc.freeze()  # as the server does: the collector does not scan what has been loaded
    return engine


def add_prompts(engine: Engine, prompts: int, tokens: int) -> None:
    """Add so many random prompts, each of which generates one token."""
    for i, ids in enumerate(random_prompts(engine.model.config, prompts, tokens)):
        engine.add(str(i), ids, SamplingParams(max_tokens=1, ignore_eos=True, temperature=0))


def _prefill(engine: Engine, prompts: int, tokens: int) -> float:
    add_prompts(engine, prompts, tokens)
    torch.cuda.synchronize()
    start = time.perf_counter()
    while engine.has_work:
        engine.step()
    return time.perf_counter() - start


def _ceiling() -> float:
    """Return the FLOP/s of a large product in bf16."""
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    times = []
    for _ in range(RUNS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(4):
            torch.mm(a, b)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / 4)
    return 2 * 8192**3 / statistics.median(times[1:])


@torch.inference_mode()
def _flops(model: Thoughtbubbles, prompts: int, tokens: int) -> float:
    """Return the floating-point operations of prompts: of the streams that one of them really has in each layer.

    A stream takes 24 D² in a layer's products, and 4 D for each stream that it attends to; a logit takes 2 D.
    """
    config, streams = model.config, list[int]()
    hooks = [block.attn.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0].shape[1]))
             for block in model.blocks]  # fmt: skip
    model.streams(torch.tensor(random_prompts(config, 1, tokens), device="cuda"), Selection.of(config, "causal"))
    for hook in hooks:
        hook.remove()
    width = config.n_embd
    layers = sum(24 * width**2 * n + 4 * width * n * (n + 1) / 2 for n in streams)
    return prompts * (layers + 2 * width * config.vocab_size)


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
