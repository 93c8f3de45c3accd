"""What speculation by look-up gains: decode speed with it and without, by turns, on texts that repeat and not.

    python -m benchmarks.engine.speculation [--speculate 8] [--batch-sizes 1 8 32] [--runs 3]
    python -m benchmarks.engine.speculation --device cuda [--random-shape] [--speculate 16] [--batch-sizes 1 2 4 8]

The shipped checkpoint decodes:

- `code edit`: a source file of this repository, and then the same with an identifier renamed. The model cannot edit, so
  each drawn token is replaced by that of the edited file: what is measured is the engine under a model that edits
  without a mistake.
- `extraction`: a page of the documentation, and then every other sentence of it, by a script as well.
- `loops`: greedy continuations of prose, which repeat themselves as those of small models do.
- `prose`: the same prompts at temperature 0.7.

With `--random-shape` random weights of the 124M shape decode instead, and all four texts are by a script: `loops` and
`prose` are what the shipped checkpoint draws.

Tokens/s are of all requests together, from the first token of the last request on, by seconds of processor time:
other work on the machine disturbs these less. On a GPU, where the weights are bfloat16 and texts are longer, they are
seconds of the clock. Medians are taken over runs.
"""

import argparse
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import parse_arguments
from benchmarks.engine.scripted import HostScripts, Script
from benchmarks.header import header
from benchmarks.shapes import random_model
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams, set_threads
from thoughtbubbles.model import Thoughtbubbles, Tokenizer, load_checkpoint, shipped_checkpoint

ROOT = Path(__file__).parents[2]
PROSE, PROSE_TOKENS = ROOT / "docs" / "RELIABILITY.md", 48
EDITED, QUOTED = ROOT / "training" / "optimizer.py", ROOT / "SECURITY.md"
TEXTS = ("code edit", "extraction", "loops", "prose")
DEFAULTS = {
    "cpu": {"speculate": 8, "batch_sizes": [1, 8, 32], "runs": 3, "prompt": 200, "new": 96},
    "cuda": {"speculate": 16, "batch_sizes": [1, 2, 4, 8], "runs": 9, "prompt": 500, "new": 256},
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """How one batch decoded."""

    tokens_per_second: float
    proposed: int
    accepted: int


def main() -> None:
    """Print a table."""
    args = _arguments()
    set_threads(1)
    print(header())
    on_gpu, requests = args.device == "cuda", max(args.batch_sizes)
    checkpoint = load_checkpoint(
        shipped_checkpoint(), device=args.device, dtype=torch.bfloat16 if on_gpu else torch.float32
    )
    model, writer = checkpoint.model, None
    if args.random_shape:
        writer = _engine(model, checkpoint.tokenizer, requests, 0)
        model = random_model(model.config.block_size, args.device, next(model.parameters()).dtype)
    scripts = _device_scripts(requests, args.new) if on_gpu else HostScripts()
    engines = [_engine(model, checkpoint.tokenizer, requests, guesses) for guesses in (0, args.speculate)]
    precision = "bfloat16" if on_gpu else "one thread, float32"
    shape = "random weights of the 124M shape" if args.random_shape else "the shipped checkpoint"
    print(f"{engines[0].executor.name}, {precision}, {shape}; at most {args.speculate} guesses")
    print("batch  text        tokens/s without     with  with over without  proposed  accepted")
    for engine in engines:
        engine.generate([[1, 2, 3]], SamplingParams(max_tokens=8, ignore_eos=True))
        scripts.control(engine)
    clock = time.perf_counter if on_gpu else time.process_time
    for batch_size in args.batch_sizes:
        for text in TEXTS:
            prompts, written = _texts(text, checkpoint.tokenizer, batch_size, args)
            temperature = 0.7 if text == "prose" else 0
            params = [SamplingParams(max_tokens=args.new, ignore_eos=True, temperature=temperature, seed=seed)
                      for seed in range(batch_size)]  # fmt: skip
            if writer and None in written:
                drawn = [writer.generate([each], its)[0] for each, its in zip(prompts, params, strict=True)]
                written = [list(each.token_ids) for each in drawn]
            scripts.set(written)
            runs = [[_decode(engine, prompts, params, clock) for engine in engines] for _ in range(args.runs)]
            without, speculating = (
                statistics.median(run.tokens_per_second for run in each) for each in zip(*runs, strict=True)
            )
            last = runs[-1][1]
            print(f"{batch_size:5}  {text:10}  {without:16,.0f}  {speculating:7,.0f}  {speculating / without:17.2f}"
                  f"  {last.proposed:8,}  {last.accepted:8,}", flush=True)  # fmt: skip


def _device_scripts(requests: int, tokens: int) -> Any:  # noqa: ANN401 - needs Triton
    from benchmarks.engine.device_scripts import DeviceScripts  # noqa: PLC0415

    return DeviceScripts(requests, tokens)


def _texts(
    text: str, tokenizer: Tokenizer, number: int, args: argparse.Namespace
) -> tuple[list[list[int]], list[Script]]:
    """Return prompts, and what is to be drawn after each."""
    if text == "code edit":
        source = EDITED.read_text()
        names = sorted(set(re.findall(r"\b[a-z_]{6,}\b", source[:96])))  # so that each edit is in what is drawn
        prompts = [tokenizer.encode(source)[: args.prompt + i] for i in range(number)]
        edited = [re.sub(rf"\b{names[i % len(names)]}\b", "renamed", source) for i in range(number)]
        return prompts, [tokenizer.encode(each)[: args.new] for each in edited]
    if text == "extraction":
        prompts = [tokenizer.encode(QUOTED.read_text())[: args.prompt + i] for i in range(number)]
        sentences = [re.split(r"(?<=[.:])\s+", tokenizer.decode(prompt)) for prompt in prompts]
        quotes = ["".join(f"- {each}\n" for each in parts[i % 2 :: 2]) for i, parts in enumerate(sentences)]
        return prompts, [tokenizer.encode(each)[: args.new] for each in quotes]
    ids = tokenizer.encode(PROSE.read_text())
    starts = range(0, (len(ids) - PROSE_TOKENS) // number * number, (len(ids) - PROSE_TOKENS) // number)
    return [ids[start : start + PROSE_TOKENS] for start in starts], [None] * number


def _engine(model: Thoughtbubbles, tokenizer: Tokenizer, batch_size: int, guesses: int) -> Engine:
    return Engine(model, tokenizer, EngineConfig(
        max_batch_size=batch_size, cache_bytes=2 << 30, speculate=guesses,
    ))  # fmt: skip


def _decode(engine: Engine, prompts: list[list[int]], params: list[SamplingParams], clock: Callable[[], float]) -> Run:
    before = engine.stats()
    for i, (prompt, each) in enumerate(zip(prompts, params, strict=True)):
        engine.add(str(i), prompt, each)
    started: set[str] = set()
    while len(started) < len(prompts):
        started |= {event.request_id for event in engine.step()}
    start, first = clock(), engine.stats().generation_tokens_total
    while engine.has_work:
        engine.step()
    seconds, after = clock() - start, engine.stats()
    return Run(
        tokens_per_second=(after.generation_tokens_total - first) / seconds,
        proposed=after.speculation_proposed_tokens_total - before.speculation_proposed_tokens_total,
        accepted=after.speculation_accepted_tokens_total - before.speculation_accepted_tokens_total,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=list(DEFAULTS))
    parser.add_argument("--speculate", type=int, help="most guesses of a step (8, on a GPU 16)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="(1 8 32, on a GPU 1 2 4 8)")
    parser.add_argument("--random-shape", action="store_true", help="decode with random weights of the 124M shape")
    parser.add_argument("--runs", type=int, help="that medians are taken over (3, on a GPU 9)")
    parser.add_argument("--prompt", type=int, help="tokens of what is edited or quoted (200, on a GPU 500)")
    parser.add_argument("--new", type=int, help="tokens that are drawn (96, on a GPU 256)")
    return parse_arguments(parser, DEFAULTS)


if __name__ == "__main__":
    main()
