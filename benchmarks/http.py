"""What HTTP costs: tokens streamed to clients of a real server, against the engine without one, in one run.

    python -m benchmarks.http [--clients 1 8] [--max-tokens 256]

For each number of clients it prints the tokens a second that all together got, the median and 99th percentile of their
time to first token, the median inter-token time, and the engine's own tokens a second for the same requests.
"""

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import httpx
import torch

from benchmarks.header import header
from benchmarks.serving import serving
from engine import Engine, EngineConfig, SamplingParams, set_threads
from model import load_checkpoint, shipped_checkpoint

PROMPT = "The river"


@dataclass(frozen=True)
class Stream:
    """When one client's tokens came, in seconds since it asked."""

    arrivals: list[float]


def main() -> None:
    """Print the table."""
    args = _arguments()
    set_threads()  # as the server does
    checkpoint = args.checkpoint or str(shipped_checkpoint())
    print(header())
    print("clients  tokens/s  first token p50 ms  p99 ms  inter-token ms  engine alone tokens/s  share")
    for clients in args.clients:
        engine = _engine_rate(checkpoint, clients, args.max_tokens)
        with serving("--checkpoint", checkpoint) as (address, _):
            asyncio.run(_load(address, clients, max_tokens=8))
            start = time.perf_counter()
            streams = asyncio.run(_load(address, clients, args.max_tokens))
            rate = clients * args.max_tokens / (time.perf_counter() - start)
        first = sorted(1000 * stream.arrivals[0] for stream in streams)
        gaps = [b - a for stream in streams for a, b in zip(stream.arrivals, stream.arrivals[1:], strict=False)]
        last, gap = first[int(0.99 * len(first))], 1000 * statistics.median(gaps)
        print(f"{clients:7}  {rate:8.0f}  {statistics.median(first):18.1f}  {last:6.1f}  {gap:14.2f}  {engine:21.0f}"
              f"  {rate / engine:5.2f}", flush=True)  # fmt: skip


def _engine_rate(checkpoint: str, clients: int, max_tokens: int) -> float:
    """Tokens a second of the engine alone."""
    loaded = load_checkpoint(checkpoint)
    engine = Engine(loaded.model, loaded.tokenizer, EngineConfig())
    prompts = [loaded.tokenizer.encode(PROMPT)] * clients
    engine.generate(prompts, SamplingParams(max_tokens=8, ignore_eos=True))
    start = time.perf_counter()
    engine.generate(prompts, SamplingParams(max_tokens=max_tokens, ignore_eos=True))
    return clients * max_tokens / (time.perf_counter() - start)


async def _load(address: str, clients: int, max_tokens: int) -> list[Stream]:
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        return await asyncio.gather(*(_stream(client, max_tokens, seed) for seed in range(clients)))


async def _stream(client: httpx.AsyncClient, max_tokens: int, seed: int) -> Stream:
    body = {"prompt": PROMPT, "max_tokens": max_tokens, "stream": True, "ignore_eos": True, "seed": seed,
            "return_token_ids": True}  # fmt: skip
    arrivals: list[float] = []
    start = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                arrivals += [time.perf_counter() - start] * _tokens(json.loads(line[6:]))
    assert len(arrivals) == max_tokens, f"{len(arrivals)} tokens came, not {max_tokens}"
    return Stream(arrivals)


def _tokens(chunk: dict[str, Any]) -> int:
    return sum(len(choice["token_ids"]) for choice in chunk["choices"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", help="checkpoint folder (the one that ships)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--max-tokens", type=int, default=256)
    args = parser.parse_args()
    torch.manual_seed(0)
    return args


if __name__ == "__main__":
    main()
