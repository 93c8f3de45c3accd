"""Memory that scoring prompts adds to a server, checked against a bound in bytes.

    python -m benchmarks.server.scoring_memory [--clients 32] [--prompt-tokens 2048] [--vocabulary 50304] [--top 20]

All clients at once request the log-probabilities of a prompt of their own, with the likeliest tokens at each position,
and a few new tokens, so that every prompt is scored before an answer is written. Scoring adds the server's peak of
resident memory less the peak for the same prompts unscored. The command fails if that exceeds the bound. With C
clients, P tokens in each prompt, K likeliest tokens and a vocabulary of V, the bound is the sum of

    logits      2 · 128 · V · 4           of one part of one prompt (engine/scoring.py)
    kept        C · P · (4 + 8K)          numbers, until the answer is written (engine/prompt_report.py)
    written     P · (K + 1) · 320         Python objects of the one answer that is being written as JSON
    on the way  C · P · (K + 1) · 64      JSON, and a socket's copy of what the client has not read yet

For comparison it prints what one prompt adds if all its logits are computed at once. Linux only.
"""

import argparse
import asyncio
import random
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.header import header
from benchmarks.server.clients import Load, Request, put_load, require_complete
from benchmarks.server.serving import serving
from thoughtbubbles.engine import set_threads
from thoughtbubbles.engine.scoring import TOKENS_AT_ONCE
from thoughtbubbles.model import ModelConfig, Selection, Thoughtbubbles, Tokenizer, load_checkpoint, save_checkpoint

WIDTH = 32
ANSWER = 8
"""New tokens of each request: no answer is written before all prompts have been scored."""
MIB = 1 << 20
ROUNDS = 3
CACHE_BYTES = 256 * MIB


class Memory:
    """Resident memory of a process, in bytes."""

    def __init__(self, process: int | str = "self") -> None:
        self._folder = Path("/proc", str(process))

    def reset(self) -> None:
        """Start a new peak."""
        (self._folder / "clear_refs").write_text("5")

    def peak(self) -> int:
        """Return the peak since `reset`."""
        found = re.search(r"VmHWM:\s*(\d+) kB", (self._folder / "status").read_text())
        assert found, "Linux reports VmHWM of every running process"
        return 1024 * int(found[1])


def main() -> None:
    """Print the table; exit with 1 if the bound does not hold."""
    args = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        _make_checkpoint(folder, args.vocabulary, args.prompt_tokens + ANSWER)
        print(header())
        options = ["--checkpoint", folder, "--cache-bytes", str(CACHE_BYTES), "--threads", "1"]
        with serving(*options) as (address, pid):
            memory = Memory(pid)
            unscored = _peak(address, memory, args, None)
            scored = _peak(address, memory, args, args.top)
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            whole = process.submit(_whole_logits, folder, args.prompt_tokens, args.top).result()
    added, bound = scored - unscored, _bound(args)
    print(f"{args.clients} prompts of {args.prompt_tokens} tokens, vocabulary {args.vocabulary}, top {args.top}")
    print(f"peak without scoring          {unscored / MIB:6.0f} MiB")
    print(f"peak with scoring             {scored / MIB:6.0f} MiB")
    print(f"scoring adds                  {added / MIB:6.0f} MiB")
    for name, size in bound.items():
        print(f"  bound: {name:21}{size / MIB:7.0f} MiB")
    print(f"  bound: {'all':21}{sum(bound.values()) / MIB:7.0f} MiB")
    print(f"one prompt with all its logits at once adds {whole / MIB:.0f} MiB")
    if added > sum(bound.values()):
        sys.exit("the bound does not hold")


def _bound(args: argparse.Namespace) -> dict[str, int]:
    """Return the parts of the bound, in bytes."""
    answer = args.prompt_tokens * (args.top + 1)
    return {
        "logits": 2 * TOKENS_AT_ONCE * args.vocabulary * 4,
        "kept": args.clients * args.prompt_tokens * (4 + 8 * args.top),
        "written": answer * 320,
        "on the way": args.clients * answer * 64,
    }


def _make_checkpoint(folder: str, vocabulary: int, context: int) -> None:
    """Write a small random model with a large vocabulary."""
    torch.manual_seed(0)
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [b"%04x" % number for number in range(vocabulary - 1 - len(tokens))]
    tokenizer = Tokenizer({token: rank for rank, token in enumerate(tokens)}, "random")
    config = ModelConfig(
        vocab_size=vocabulary, block_size=context, max_block_size=2 * context, n_layer=2, n_head=2, n_embd=WIDTH,
        fork_layers=(1,),
    )  # fmt: skip
    save_checkpoint(folder, Thoughtbubbles(config), tokenizer, {})


def _peak(address: str, memory: Memory, args: argparse.Namespace, top: int | None) -> int:
    """Return the server's peak over rounds that each answer every client: a heap that keeps growing would show."""

    def request(client: int, _: int) -> Request:
        prompt = random.Random(client).choices(range(args.vocabulary - 1), k=args.prompt_tokens)
        return Request(body={"prompt": prompt, "max_tokens": ANSWER, "ignore_eos": True, "echo": True, "logprobs": top})

    memory.reset()
    for _ in range(ROUNDS):
        load = Load(address=address, request=request, clients=args.clients, requests=1)
        require_complete(asyncio.run(put_load(load)))
    return memory.peak()


@torch.inference_mode()
def _whole_logits(checkpoint: str, tokens: int, top: int) -> int:
    """Return the bytes that one prompt adds if all its logits are computed at once."""
    set_threads(1)
    loaded, memory = load_checkpoint(checkpoint), Memory()
    ids = torch.randint(loaded.tokenizer.vocab_size, (1, tokens))
    streams, _ = loaded.model.streams(ids, Selection.of(loaded.model.config, "causal"))
    memory.reset()
    before = memory.peak()
    loaded.model.readout(streams)[0].log_softmax(1).topk(top, dim=1)
    return memory.peak() - before


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--top", type=int, default=20)
    return parser.parse_args()


if __name__ == "__main__":
    main()
