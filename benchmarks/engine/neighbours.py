"""How a request without pages slows cached ones: their speed and pauses beside one, while it decodes or is prefilled.

    python -m benchmarks.engine.neighbours [CHECKPOINT] [--requests 15] [--context 256] [--prompt 900] [--tokens 100]
    python -m benchmarks.engine.neighbours --device cuda [--dtype bfloat16] [--block-size 4096] [--tokens 400]

On a GPU, without CHECKPOINT, the model has the 124M shape and random weights. The cached requests decode alone, then
beside one other request, and alone again: `decode` is while it decodes after `--context` tokens, `prefill` until the
first token of one whose prompt has `--prompt`; beside `none` they stay alone, which shows how far two measurements
differ. `kept` is their speed beside it over their speed alone, and `pause` the longest time between two steps that give
them tokens. Times are processor time of one thread, on a GPU seconds of the clock.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks.arguments import parse_arguments
from benchmarks.header import header
from benchmarks.shapes import numbered_tokens, random_model
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams, set_threads
from thoughtbubbles.model import ForkBias, ModelConfig, Thoughtbubbles, Tokenizer, load_checkpoint, shipped_checkpoint

KINDS = ("none", "cached", "dynamic", "fixed", "fork_bias")
"""What the other request is."""
PHASES = ("decode", "prefill")
DEFAULTS = {"cpu": {"dtype": "float32", "tokens": 100}, "cuda": {"dtype": "bfloat16", "tokens": 400}}
CACHED_PROMPT = 64
"""Tokens of the prompt of each cached request."""
OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is measured."""

    requests: int
    """Cached requests."""
    context: int
    """Tokens of the other's prompt where its decode counts."""
    prompt: int
    """The same where its prefill counts."""
    tokens: int
    """Tokens of each cached request in each part, at least."""
    others: int = 4
    """Tokens of the other while it decodes, at least: its share of the time shows in a longer part alone."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table."""

    alone: float
    """Tokens a second of all cached requests."""
    beside: float
    """The same beside the other request."""
    gaps: list[float]
    """Seconds between steps that gave cached requests tokens, beside the other."""
    others: int
    """Tokens of the other meanwhile."""

    @property
    def kept(self) -> float:
        """The share of their speed that cached requests keep."""
        return self.beside / self.alone


@dataclass
class Watch:
    """Steps an engine and notes when cached requests get tokens, and how many tokens the other has."""

    engine: Engine
    clock: Callable[[], float] = time.process_time
    times: list[float] = field(default_factory=list)
    others: int = 0

    def step(self) -> None:
        """Take a step. Raise `ValueError` if a request ends: the rest would not be measured beside as many."""
        events = self.engine.step()
        if any(event.finish_reason is not None for event in events):
            raise ValueError("tokens: a request has reached the end of the context; measure fewer")
        others = sum(event.request_id == OTHER for event in events)
        self.others += others
        if len(events) > others:
            self.times.append(self.clock())

    def gaps(self) -> list[float]:
        """Return the seconds between steps that gave cached requests tokens."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]

    def tokens(self, count: int, others: int = 0) -> list[float]:
        """Return the gaps of the next `count` tokens of each cached request, or more, until the other has `others`."""
        self.times, self.others = self.times[-1:], 0
        while len(self.times) <= count or self.others < others:
            self.step()
        return self.gaps()

    def first(self) -> list[float]:
        """Return the gaps until the other has its first token."""
        self.times, self.others = self.times[-1:], 0
        while not self.others:
            self.step()
        self.step()
        return self.gaps()


def main() -> None:
    """Print the table."""
    args = _arguments()
    set_threads(1)
    print(header(), flush=True)
    began = time.perf_counter()
    engine = _engine(*_served(args), args.requests)
    load = Load(requests=args.requests, context=args.context, prompt=args.prompt, tokens=args.tokens)
    clock = time.perf_counter if args.device == "cuda" else time.process_time
    print(f"# ready after {time.perf_counter() - began:.0f} s")
    print(
        "other      phase    alone tok/s  beside tok/s  kept  median ms  pause ms  its tok/s  its first token s",
        flush=True,
    )
    for kind in args.kinds:
        for phase in ("decode",) if kind == "none" else args.phases:
            measure(
                Watch(engine), replace(load, requests=1, tokens=2, others=1), kind, phase
            )  # what is first met is slow
            _print_row(kind, phase, measure(Watch(engine, clock), load, kind, phase))


def measure(watch: Watch, load: Load, kind: str, phase: str) -> Row:
    """Return the row of a kind of request in a phase; the engine of `watch` is idle before and after."""
    engine, end = watch.engine, watch.engine.tokenizer.end_of_text
    for i in range(load.requests):
        ids = [(7 * j * j + 31 * i) % end for j in range(CACHED_PROMPT)]
        engine.add(f"cached {i}", ids, _until_the_end(engine, ids, i))
    watch.tokens(20)  # after their prefill
    alone = watch.tokens(load.tokens)
    if kind != "none":
        ids = [(11 * j * j + 5 * j) % end for j in range(load.context if phase == "decode" else load.prompt)]
        engine.add(OTHER, ids, _until_the_end(engine, ids, 0, **_asks(kind, engine.model.config)))
        beside = watch.first()
    if phase == "decode":
        beside = watch.tokens(load.tokens, 0 if kind == "none" else load.others)
    others = watch.others
    engine.abort(OTHER)
    alone += watch.tokens(load.tokens)  # a step grows with the texts: half before, half after
    engine.abort_all()
    before, after = (load.requests / statistics.mean(gaps) for gaps in (alone, beside))
    return Row(alone=before, beside=after, gaps=beside, others=others)


def _until_the_end(engine: Engine, ids: list[int], seed: int, **asks: Any) -> SamplingParams:  # noqa: ANN401 - fields
    """Return parameters of a request that goes on to the end of the context."""
    return SamplingParams(max_tokens=engine.max_model_len - len(ids), ignore_eos=True, seed=seed, **asks)


def _asks(kind: str, config: ModelConfig) -> dict[str, object]:
    """Return the fields that make a request one of this kind."""
    match kind:
        case "fork_bias":
            return {"fork_bias": (ForkBias(layer=config.fork_layers[0], position=1, bias=1.0),)}
        case "dynamic" | "fixed":
            return {"fork_selection": kind}
        case _:
            return {}


def _print_row(kind: str, phase: str, row: Row) -> None:
    seconds = sum(row.gaps)
    its = f"{row.others / seconds:9.1f}" if phase == "decode" else f"{'':9}  {seconds:17.2f}"
    print(f"{kind:9}  {phase:7}  {row.alone:11.0f}  {row.beside:12.0f}  {row.kept:4.2f}"
          f"  {1000 * statistics.median(row.gaps):9.2f}  {1000 * max(row.gaps):8.1f}  {its}", flush=True)  # fmt: skip


def _engine(model: Thoughtbubbles, tokenizer: Tokenizer, requests: int) -> Engine:
    """Return an engine with pages for all requests, which shares no prefixes: each row begins as the first does."""
    config, like = model.config, model.transformer.wte.weight
    streams = (requests + 1) * max(config.max_block_size, config.block_size)
    cache_bytes = 2 * streams * 2 * config.n_layer * config.n_embd * like.element_size()
    return Engine(
        model, tokenizer, EngineConfig(max_batch_size=requests + 1, cache_bytes=cache_bytes, prefix_caching=False)
    )


def _served(args: argparse.Namespace) -> tuple[Thoughtbubbles, Tokenizer]:
    dtype = getattr(torch, args.dtype)
    if args.checkpoint is None and args.device == "cuda":
        model = random_model(args.block_size, args.device, dtype)
        return model, numbered_tokens(model.config.vocab_size)
    checkpoint = load_checkpoint(args.checkpoint or shipped_checkpoint(), device=args.device, dtype=dtype)
    return checkpoint.model, checkpoint.tokenizer


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", help="checkpoint folder (the shipped one; on a GPU random weights)")
    parser.add_argument("--device", default="cpu", choices=list(DEFAULTS))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="(float32, on a GPU bfloat16)")
    parser.add_argument("--block-size", type=int, default=4096, help="context of random weights (%(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what the other request is")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES), help="what the other does")
    parser.add_argument("--requests", type=int, default=15, help="cached requests (%(default)s)")
    parser.add_argument("--context", type=int, default=256, help="tokens of the other's prompt (%(default)s)")
    parser.add_argument("--prompt", type=int, default=900, help="the same where its prefill counts (%(default)s)")
    parser.add_argument("--tokens", type=int, help="tokens of each cached request, three times (100, on a GPU 400)")
    return parse_arguments(parser, DEFAULTS)


if __name__ == "__main__":
    main()
