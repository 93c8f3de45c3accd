"""Log-probabilities of prompts on a GPU, beside plain prefill of the same prompts and transformers' forward.

    python -m benchmarks.engine.scoring [--loads 32x512 1x2000] [--tops 1 5 20]

Random weights of the 124M shape, bf16. lm-evaluation-harness asks for the log-probabilities of whole prompts, one
likeliest token at each position, and one more token. For each load it prints the milliseconds until all have ended, and
how many times as long as plain prefill, with one more token, they take. The ways take turns; medians are taken over
runs, and one run before them is left out.

The peer is transformers' regular GPT-2: forward, log_softmax, each token's own entry and the likeliest, copied to the
host, for as many prompts at once as have 8,192 tokens. Its ratio is to its own forward with the logits of each prompt's
last token alone.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.header import header
from benchmarks.shapes import numbered_tokens, random_model, random_prompts, regular_peer
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams

BLOCK_SIZE = 2048
PEER_TOKENS = 8192
PLAIN: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "ignore_eos": True}


def main() -> None:
    """Print the table."""
    args = _arguments()
    print(header())
    model = random_model(BLOCK_SIZE, "cuda", torch.bfloat16)
    peer = regular_peer(model.config, "cuda", torch.bfloat16)
    config = EngineConfig(max_batch_size=64, cache_bytes=16 << 30, prefix_caching=False)
    engine = Engine(model, numbered_tokens(model.config.vocab_size), config)
    gc.freeze()  # as the server does: the collector does not scan what has been loaded
    print(f"{engine.max_prefill_tokens} tokens a step; medians of {args.runs} runs")
    print("prompts  tokens each       ms  tokens/s  of plain  MiB more at the peak")
    for load in args.loads:
        number, tokens = map(int, load.split("x"))
        prompts = random_prompts(model.config, number, tokens)
        ways = {"plain prefill": partial(score, engine, prompts, None)}
        ways |= {f"logprobs {top}": partial(score, engine, prompts, top) for top in args.tops}
        _print_load(number, tokens, ways, args.runs)
        if peer is not None:
            ids = torch.tensor(prompts, device="cuda").split(max(1, PEER_TOKENS // tokens))
            ways = {"transformers, plain": partial(_peer_plain, peer, ids)}
            ways |= {f"transformers, logprobs {top}": partial(_peer_scores, peer, ids, top) for top in args.tops}
            _print_load(number, tokens, ways, args.runs)


def score(engine: Engine, prompts: list[list[int]], top: int | None) -> list[float]:
    """Return each prompt's log-probability, 0 if `top` is None: then it is prefilled alone."""
    params = SamplingParams(**PLAIN, logprobs=top, prompt_logprobs=top)
    for i, ids in enumerate(prompts):
        engine.add(str(i), ids, params)
    totals = [0.0] * len(prompts)
    while engine.has_work:
        for event in engine.step():
            if event.prompt is not None and event.prompt.scores is not None:
                totals[int(event.request_id)] = sum(event.prompt.scores.own)
    return totals


@torch.inference_mode()
def _peer_plain(peer: Any, ids: tuple[Tensor, ...]) -> None:  # noqa: ANN401 - transformers' own
    for some in ids:
        peer(some, logits_to_keep=1).logits[:, -1].argmax(-1).tolist()


@torch.inference_mode()
def _peer_scores(peer: Any, ids: tuple[Tensor, ...], top: int) -> None:  # noqa: ANN401 - transformers' own
    for some in ids:
        log_p = peer(some).logits.float().log_softmax(-1)
        own = log_p[:, :-1].gather(2, some[:, 1:, None])
        likeliest = log_p.topk(max(1, top), dim=-1)
        _ = own.cpu(), likeliest.values.cpu(), likeliest.indices.cpu()


def _print_load(number: int, tokens: int, ways: dict[str, Callable[[], object]], runs: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in ways}
    peaks = {}
    for _ in range(runs + 1):
        for name, run in ways.items():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before, start = torch.cuda.memory_allocated(), time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
            peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    medians = {name: statistics.median(each[1:]) for name, each in times.items()}
    plain = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"{number:7}  {tokens:11}  {median:7.1f}  {1e3 * number * tokens / median:8,.0f}  {median / plain:8.2f}"
              f"  {peaks[name]:20,.0f}  {name}, {min(times[name][1:]):.1f} to {max(times[name][1:]):.1f} ms",
              flush=True)  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--loads", nargs="+", default=["32x512", "1x2000"], metavar="PROMPTSxTOKENS")
    parser.add_argument("--tops", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--runs", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    main()
