"""How a request without pages slows cached ones: their speed and pauses beside one, while it decodes or is prefilled.

    python -m benchmarks.engine.neighbours [CHECKPOINT] [--requests 15] [--context 256] [--prompt 900] [--tokens 100]

Each row is of one engine. The cached requests decode alone, then beside one other request, and alone again: `decode` is
while it decodes after `--context` tokens, `prefill` until the first token of one whose prompt has `--prompt`. `kept` is
their speed beside it over their speed alone, and `pause` the longest time between two steps that give them tokens. All
times are processor time of one thread.
"""

import argparse
import statistics
import time
from dataclasses import dataclass, field

from benchmarks.header import header
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams, set_threads
from thoughtbubbles.model import Checkpoint, ForkBias, load_checkpoint, shipped_checkpoint

KINDS: dict[str, dict[str, object]] = {
    "cached": {},
    "fork_bias": {"fork_bias": (ForkBias(layer=3, position=1, bias=1.0),)},
    "dynamic": {"fork_selection": "dynamic"},
}
"""What the other request is."""


@dataclass
class Watch:
    """Steps an engine and notes when cached requests get tokens, and how many tokens the other has."""

    engine: Engine
    times: list[float] = field(default_factory=list)
    others: int = 0

    def step(self) -> None:
        """Take a step."""
        events = self.engine.step()
        others = sum(event.request_id == "other" for event in events)
        self.others += others
        if len(events) > others:
            self.times.append(time.process_time())

    def gaps(self) -> list[float]:
        """Return the seconds between steps that gave cached requests tokens."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]

    def tokens(self, count: int) -> list[float]:
        """Return the gaps of the next `count` tokens of each cached request, or more."""
        self.times = self.times[-1:]
        while len(self.times) <= count:
            self.step()
        return self.gaps()

    def first(self) -> list[float]:
        """Return the gaps until the other has its first token."""
        self.times = self.times[-1:]
        while not self.others:
            self.step()
        self.step()
        return self.gaps()


def main() -> None:
    """Print the table."""
    args = _arguments()
    set_threads(1)
    checkpoint = load_checkpoint(args.checkpoint or shipped_checkpoint())
    print(header())
    print("other      phase    alone tok/s  beside tok/s  kept  median ms  pause ms  its tok/s  its first token s")
    for kind in args.kinds:
        for phase in ("decode", "prefill"):
            _print_row(checkpoint, args, kind, phase)


def _print_row(checkpoint: Checkpoint, args: argparse.Namespace, kind: str, phase: str) -> None:
    engine = Engine(checkpoint.model, checkpoint.tokenizer, EngineConfig(max_batch_size=args.requests + 1))
    vocabulary = checkpoint.tokenizer.end_of_text
    for i in range(args.requests):
        ids = [(7 * j * j + 31 * i) % vocabulary for j in range(64)]
        engine.add(f"cached {i}", ids, SamplingParams(max_tokens=900, ignore_eos=True, seed=i))
    watch = Watch(engine)
    watch.tokens(20)  # after their prefill
    alone = watch.tokens(args.tokens)
    ids = [(11 * j * j + 5 * j) % vocabulary for j in range(args.context if phase == "decode" else args.prompt)]
    params = SamplingParams(max_tokens=1024 - len(ids), ignore_eos=True, seed=0, **KINDS[kind])  # type: ignore[arg-type]
    engine.add("other", ids, params)
    beside = watch.first()
    its = f"{'':9}  {sum(beside):17.2f}"
    if phase == "decode":
        watch.others = 0
        beside = watch.tokens(args.tokens)
        its = f"{watch.others / sum(beside):9.1f}"
    engine.abort("other")
    alone += watch.tokens(args.tokens)  # a step grows with the texts: half before, half after
    before, after = (args.requests / statistics.mean(gaps) for gaps in (alone, beside))
    print(f"{kind:9}  {phase:7}  {before:11.0f}  {after:12.0f}  {after / before:4.2f}"
          f"  {1000 * statistics.median(beside):9.1f}  {1000 * max(beside):8.1f}  {its}", flush=True)  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", help="checkpoint folder (the one that ships)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what the other request is")
    parser.add_argument("--requests", type=int, default=15, help="cached requests (%(default)s)")
    parser.add_argument("--context", type=int, default=256, help="tokens of the other's prompt (%(default)s)")
    parser.add_argument("--prompt", type=int, default=900, help="the same where its prefill counts (%(default)s)")
    parser.add_argument("--tokens", type=int, default=100, help="tokens of each cached request (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
