"""The arithmetic of docs/SCALING.md: throughput and costs of a fleet, from measurements of one server.

    python -m benchmarks.server.scaling [--tokens-per-second 708] [--answer-tokens 256] [--batch 32]

--tokens-per-second is the throughput of one replica: take yours from benchmarks/results (http-cpu.txt has one CPU
thread's). Bytes of tokens and metrics are counted on a real server; Ray's costs are read from ray-serve-….txt.
"""

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.header import header
from benchmarks.server.serving import serving
from thoughtbubbles.engine.cache.fork_cache import most_streams, segments
from thoughtbubbles.model import ModelConfig, Selection, shipped_checkpoint

REPLICAS = (1, 10, 100, 1000)
SCRAPE_SECONDS = 15
"""As in deploy/prometheus.yml."""
FAILURES_A_DAY = 419 / 54 / 16384
"""Of one GPU and its machine: the unexpected interruptions of Llama 3's training, 54 days on 16,384 H100 (arXiv
2407.21783, section 3.3.4)."""
RESULTS = Path(__file__).parents[1] / "results"
LARGE = ModelConfig(
    vocab_size=50257, block_size=1024, max_block_size=2048, n_layer=36, n_head=20, n_embd=1280, fork_layers=(3, 7, 11)
)
"""GPT-2 large's shape: 774M parameters."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """What one server sends."""

    token_bytes: float
    """Of the event of a streamed token."""
    series: int
    """Samples in /metrics."""
    page_bytes: int
    """Of /metrics."""


def cache_bytes(config: ModelConfig, element_size: int) -> int:
    """Return the most bytes of the fork-state cache a token: over segments, streams of a token × bytes of a stream."""
    tokens = config.block_size
    streams = most_streams(config, Selection.of(config, "causal"), tokens)
    total = sum(n * each.slot_bytes(config, element_size) for n, each in zip(streams, segments(config), strict=True))
    return total // tokens


def main() -> None:
    """Print the tables."""
    args = _arguments()
    print(header())
    server = _measured()
    print("\none server")
    print(f"  bytes of a streamed token  {server.token_bytes:6.0f}")
    print(f"  series in /metrics         {server.series:6}")
    print(f"  bytes of /metrics          {server.page_bytes:6}")
    print("\nbytes of the cache a token, at most     float32    bfloat16")
    shipped = ModelConfig.from_dict(json.loads((shipped_checkpoint() / "config.json").read_text())["model"])
    for config in (shipped, LARGE):
        name = f"{config.n_layer} x {config.n_embd}, ratio {config.ratio:g}"
        print(f"  {name:34}  {cache_bytes(config, 4):9,}   {cache_bytes(config, 2):9,}")
    print(f"\n{f'replicas, {args.tokens_per_second:g} tokens/s each':40}" + "".join(f"{n:12,}" for n in REPLICAS))
    costs = [_fleet(n, server, args) for n in REPLICAS]
    for name in costs[0]:
        print(f"{name:40}" + "".join(f"{_shown(each[name]):>12}" for each in costs))


def _fleet(replicas: int, server: Server, args: argparse.Namespace) -> dict[str, float]:
    """Return throughput and costs of so many replicas, by the name of the row."""
    tokens = replicas * args.tokens_per_second
    answers = tokens / args.answer_tokens
    failures = replicas * FAILURES_A_DAY
    return {
        "tokens/s": tokens,
        f"answers/s of {args.answer_tokens} tokens": answers,
        "streamed to clients, Mbit/s": tokens * server.token_bytes * 8 / 1e6,
        "Prometheus: series": replicas * server.series,
        f"  samples/s, every {SCRAPE_SECONDS} s": replicas * server.series / SCRAPE_SECONDS,
        "  one page of all, MB": replicas * server.page_bytes / 1e6,
        **_cores("Ray", tokens, answers, _costs("ray-serve-cpu.txt")),
        **_cores("with HAProxy", tokens, answers, _costs("ray-serve-haproxy-cpu.txt")),
        "GPU failures a day": failures,
        f"  answers that break, batch {args.batch}": failures * args.batch,
        "  of a million answers": failures * args.batch / (86400 * answers) * 1e6,
    }


def _cores(mode: str, tokens: float, answers: float, costs: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return the cores that so many tokens and answers a second keep busy before they reach the replicas."""

    def busy(process: str) -> float:
        token, request = costs[process]
        return (tokens * token + answers * request) / 1000

    blank = " " * len(mode)
    return {
        f"{mode}, cores: proxies": busy("proxy"),
        f"{blank}         ingresses": busy("ingress"),
        # Used once a request; its time a token is background work.
        f"{blank}         router's memory": answers * costs["router's memory"][1] / 1000,
    }


def _costs(result: str) -> dict[str, tuple[float, float]]:
    """Return milliseconds of processor time a streamed token and a request, by process."""
    rows = re.findall(r"^([a-z][a-z' ]*?) +([\d.]+) +([\d.]+)$", (RESULTS / result).read_text(), re.MULTILINE)
    return {name: (float(token), float(request)) for name, token, request in rows}


def _measured() -> Server:
    """Return what a real server sends: bytes of a stream and of the metrics after it."""
    tokens = 256
    body = {"prompt": "The river", "max_tokens": tokens, "ignore_eos": True, "stream": True, "seed": 1}
    with serving() as (address, _):
        streamed = httpx.post(f"{address}/v1/completions", json=body, timeout=600).content
        page = httpx.get(f"{address}/metrics").content
    series = len(re.findall(rb"^[^#\n]", page, re.MULTILINE))
    return Server(token_bytes=len(streamed) / tokens, series=series, page_bytes=len(page))


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens-per-second", type=float, default=708, help="of one replica")
    parser.add_argument("--answer-tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32, help="requests that run on one replica")
    return parser.parse_args()


if __name__ == "__main__":
    main()
