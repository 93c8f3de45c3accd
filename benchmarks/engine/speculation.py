"""What speculation by look-up gains on a CPU: decode speed with it and without, by turns, on texts that repeat and not.

    python -m benchmarks.engine.speculation [--speculate 8] [--batch-sizes 1 8 32] [--runs 3]

The shipped checkpoint decodes:

- `code edit`: a source file of this repository, and then the same with an identifier renamed. The model cannot edit, so
  each drawn token is replaced by that of the edited file: what is measured is the engine under a model that edits
  without a mistake.
- `loops`: greedy continuations of prose, which repeat themselves as those of small models do.
- `prose`: the same prompts at temperature 0.7.

Tokens/s are of all requests together, from the first token of the last request on, by seconds of processor time:
other work on the machine disturbs these less. Medians are taken over runs.
"""

import argparse
import re
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.header import header
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams, set_threads
from thoughtbubbles.model import Checkpoint, Tokenizer, load_checkpoint, shipped_checkpoint

ROOT = Path(__file__).parents[2]
PROSE, PROSE_TOKENS = ROOT / "docs" / "RELIABILITY.md", 48
EDITED, EDIT_TOKENS = ROOT / "training" / "optimizer.py", 200
NEW = 96
TEXTS = ("code edit", "loops", "prose")

Script = list[int] | None
"""What is to be drawn; None: what the model draws."""


class Run(NamedTuple):
    """How one batch decoded."""

    tokens_per_second: float
    proposed: int
    accepted: int


def main() -> None:
    """Print a table."""
    args = _arguments()
    set_threads(1)
    print(header())
    checkpoint = load_checkpoint(shipped_checkpoint(), dtype=torch.float32)
    engines = [_engine(checkpoint, max(args.batch_sizes), guesses) for guesses in (0, args.speculate)]
    print(f"{engines[0].executor.name}, one thread, float32; at most {args.speculate} guesses")
    print("batch  text       tokens/s without     with  with over without  proposed  accepted")
    for engine in engines:
        engine.generate([[1, 2, 3]], SamplingParams(max_tokens=8, ignore_eos=True))
    for batch_size in args.batch_sizes:
        for text in TEXTS:
            prompts, scripts = _texts(text, checkpoint.tokenizer, batch_size)
            params = SamplingParams(max_tokens=NEW, ignore_eos=True, temperature=0.7 if text == "prose" else 0, seed=1)
            runs = [[_decode(engine, prompts, scripts, params) for engine in engines] for _ in range(args.runs)]
            without, speculating = (
                statistics.median(run.tokens_per_second for run in each) for each in zip(*runs, strict=True)
            )
            last = runs[-1][1]
            print(f"{batch_size:5}  {text:9}  {without:16,.0f}  {speculating:7,.0f}  {speculating / without:17.2f}"
                  f"  {last.proposed:8,}  {last.accepted:8,}", flush=True)  # fmt: skip


def _texts(text: str, tokenizer: Tokenizer, number: int) -> tuple[list[list[int]], list[Script]]:
    """Return prompts, and what is to be drawn after each."""
    if text == "code edit":
        source = EDITED.read_text()
        names = sorted(set(re.findall(r"\b[a-z_]{6,}\b", source[:NEW])))  # so that each edit is in what is drawn
        prompts = [tokenizer.encode(source)[: EDIT_TOKENS + i] for i in range(number)]
        edited = [re.sub(rf"\b{names[i % len(names)]}\b", "renamed", source) for i in range(number)]
        return prompts, [tokenizer.encode(each)[:NEW] for each in edited]
    ids = tokenizer.encode(PROSE.read_text())
    starts = range(0, (len(ids) - PROSE_TOKENS) // number * number, (len(ids) - PROSE_TOKENS) // number)
    return [ids[start : start + PROSE_TOKENS] for start in starts], [None] * number


def _engine(checkpoint: Checkpoint, batch_size: int, guesses: int) -> Engine:
    engine = Engine(checkpoint.model, checkpoint.tokenizer, EngineConfig(
        max_batch_size=batch_size, cache_bytes=2 << 30, speculate=guesses,
    ))  # fmt: skip
    paged: Any = engine.executor.paged  # type: ignore[attr-defined]
    draw = paged.draw

    def draw_as_written(batch: Any, extended: Any) -> Any:  # noqa: ANN401 - of either executor
        drawn = draw(batch, extended)
        for i, (request, guessed) in enumerate(zip(batch.requests, batch.guessed, strict=True)):
            script = engine.scripts[int(request.id)]  # type: ignore[attr-defined]
            if script is not None and drawn.tokens[i] is not None:
                drawn.tokens[i] = script[len(request.output) + guessed]
        return drawn

    paged.draw = draw_as_written
    engine.scripts = [None]  # type: ignore[attr-defined]
    return engine


def _decode(engine: Engine, prompts: list[list[int]], scripts: list[Script], params: SamplingParams) -> Run:
    before = engine.stats()
    engine.scripts = scripts  # type: ignore[attr-defined]
    for i, prompt in enumerate(prompts):
        engine.add(str(i), prompt, params)
    started: set[str] = set()
    while len(started) < len(prompts):
        started |= {event.request_id for event in engine.step()}
    start, first = time.process_time(), engine.stats().generation_tokens_total
    while engine.has_work:
        engine.step()
    seconds, after = time.process_time() - start, engine.stats()
    return Run(
        (after.generation_tokens_total - first) / seconds,
        after.speculation_proposed_tokens_total - before.speculation_proposed_tokens_total,
        after.speculation_accepted_tokens_total - before.speculation_accepted_tokens_total,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--speculate", type=int, default=8, help="most guesses of a step (%(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--runs", type=int, default=3, help="that medians are taken over (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
