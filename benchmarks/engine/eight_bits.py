"""Decode on a GPU with a cache in float8.

    python -m benchmarks.engine.eight_bits [--parts attention steps] [--loads 64x2000 1x500]

The 124M shape with random weights, L = 2048, κ = 2L, bf16. Pages have random contents, and a request as many streams as
its budget admits. The parts:

- `attention`: microseconds of the attention of one layer, by the kernel for 16 bits and by that for 8 bits with several
  sizes of blocks, and how far from torch's each is.
- `steps`: for each type of cache the time of a captured decode step, greedy, at each load (requests x tokens), a median
  of runs that the types take by turns; the bytes of pages a token, and the tokens that 1 GiB of cache has space for.
"""

import argparse
import statistics
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.engine.timing import device_seconds, microseconds
from benchmarks.header import header
from benchmarks.shapes import numbered_tokens, random_model, shape_124m
from thoughtbubbles.engine import SamplingParams
from thoughtbubbles.engine.cache.fork_cache import ForkCache, most_streams
from thoughtbubbles.engine.cuda.decode import DecodeStep
from thoughtbubbles.engine.cuda.executor import make_device_sampler
from thoughtbubbles.engine.cuda.kernels import eight_bit_attention as eight_bits
from thoughtbubbles.engine.cuda.kernels.attention import Parts, paged_attention
from thoughtbubbles.engine.cuda.kernels.rows import Span
from thoughtbubbles.engine.cuda.lanes import Lanes
from thoughtbubbles.engine.detokenizer import Detokenizer
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.sampler import Sampler
from thoughtbubbles.model import Selection, Thoughtbubbles, Tokenizer

FLOAT8 = torch.float8_e4m3fn
WAYS = {"bfloat16": torch.bfloat16, "float8 cache": FLOAT8}
BLOCKS = ((64, 2, 3, 1), (64, 2, 3, 2), (64, 2, 2, 1), (64, 2, 4, 1), (64, 4, 3, 1), (64, 1, 3, 1), (128, 2, 2, 1),
          (32, 1, 4, 1))  # fmt: skip
"""Keys, warps, stages, and programs that share the keys of a batch slot."""
ATTENDED = ((64, 3900), (64, 1000), (1, 1000))
"""Requests and streams of each."""
PAGE, STEPS, MOST_TOKENS, GIB = 16, 40, 2048, 1 << 30


def main() -> None:
    """Print what the options ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=["attention", "steps"], default=["attention", "steps"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--loads", nargs="+", default=["64x2000", "16x500", "1x500"], metavar="REQUESTSxTOKENS")
    parser.add_argument("--runs", type=int, default=5, help="that medians are taken over (%(default)s)")
    args = parser.parse_args()
    print(header())
    with torch.inference_mode():
        if "attention" in args.parts:
            _attention()
        if "steps" in args.parts:
            _steps(args)


class _Greedy(DecodeStep):
    plain = (True,)


@dataclass
class Decoding:
    """A captured decode step, and lanes for it to run over."""

    step: DecodeStep
    lanes: Lanes
    cache: ForkCache
    tokens: int
    times: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, model: Thoughtbubbles, tokenizer: Tokenizer, dtype: torch.dtype, load: str) -> "Decoding":
        """Return the step of a load, over a cache in which pages of its requests lie by turns."""
        config, like = model.config, model.transformer.wte.weight.new_empty(0, dtype=dtype)
        requests, tokens = map(int, load.split("x"))
        selection, device = Selection.of(config, "causal"), like.device
        slots = (2 * config.n_layer * config.n_embd * like.element_size() + 64) * most_streams(config, selection, 1)[-1]
        cache = ForkCache(config, max_tokens=MOST_TOKENS, total_bytes=requests * MOST_TOKENS * slots, page_size=PAGE,
                          like=like, requests=requests)  # fmt: skip
        states = [cache.open(selection) for _ in range(requests)]
        for reserved in range(PAGE, tokens + STEPS + PAGE, PAGE):
            cache.reserve(states, [reserved] * requests)
        for pages in cache.segments:
            _fill(pages.keys)
            _fill(pages.values)
            pages.scores.fill_(-(1 << 30))
        sampler = make_device_sampler(model, cache, Sampler(tokenizer))
        lanes = Lanes.zeros(device, L=requests, G=len(cache.segments), P=cache.ledger.table.shape[1])
        step = _Greedy(model, cache, lanes, sampler, batch_size=requests)
        step.capture(torch.cuda.Stream(device)) if device.type == "cuda" else step.prepare()
        params = SamplingParams(temperature=0)
        greedy = [Request(str(i), (0,), params, selection, 0, Detokenizer(tokenizer)) for i in range(requests)]
        sampler.assign(cache.ledger.generation.argsort(), greedy)
        lanes.table.copy_(torch.from_numpy(cache.ledger.table))
        lanes.kappa.fill_(config.max_block_size)
        step.lane.copy_(torch.arange(requests))
        return cls(step, lanes, cache, tokens)

    def run(self) -> None:
        """Time the steps around the load's number of tokens."""
        before = self.tokens - STEPS // 2
        self.lanes.tokens.fill_(before)
        most = most_streams(self.cache.config, Selection.of(self.cache.config, "causal"), before)
        for streams, n in zip(self.lanes.streams, most, strict=True):
            streams.fill_(n)
        self.times.append(device_seconds(lambda: [self.step.run(plain=True) for _ in range(STEPS)]) / STEPS)

    @property
    def token_bytes(self) -> float:
        """Bytes of the pages that a request needs, for each of its tokens."""
        most = most_streams(self.cache.config, Selection.of(self.cache.config, "causal"), self.tokens)
        return (
            sum(-(-n // PAGE) * pages.page_bytes for n, pages in zip(most, self.cache.segments, strict=True))
            / self.tokens
        )


def _fill(stored: Tensor) -> None:
    """Fill keys or values with numbers near one."""
    if stored.dtype == FLOAT8:
        stored.view(torch.uint8).random_(0x20, 0x40)  # from 1/8 to almost 2
    else:
        stored.normal_()


def _steps(args: argparse.Namespace) -> None:
    model = random_model(MOST_TOKENS, "cuda", torch.bfloat16)
    tokenizer = numbered_tokens(model.config.vocab_size)
    print("\nmilliseconds of a decode step, and how many times as fast as the first way; KB of cache a token; tokens in"
          " 1 GiB")  # fmt: skip
    print(f"{'way':12}  " + "  ".join(f"{load:>16}" for load in args.loads))
    lines = {name: f"{name:12}" for name in args.ways}
    for load in args.loads:
        ways = {name: Decoding.of(model, tokenizer, WAYS[name], load) for name in args.ways}
        for _ in range(args.runs + 1):
            for way in ways.values():
                way.run()
        medians = {name: statistics.median(way.times[1:]) for name, way in ways.items()}
        first = next(iter(medians.values()))
        for name, own in medians.items():
            lines[name] += f"  {1e3 * own:9.3f} {first / own:6.2f}"
            if load == args.loads[-1]:
                size = ways[name].token_bytes
                lines[name] += f"  {size / 1e3:6.2f}  {GIB / size:8,.0f}"
    print("\n".join(lines.values()), flush=True)


def _attention() -> None:
    print("\nattention of a layer, 2 new streams: microseconds (TB/s) of each choice: keys, warps, stages, programs")
    for requests, streams in ATTENDED:
        case = _Case.of(requests, streams)
        size = 2 * requests * streams * 768 / 1e6
        took, off = case.measure(torch.bfloat16, 16 if requests == 1 else 1)
        print(f"{requests:3} x {streams:4}  16 bits: {took:.1f} ({2 * size / took:.2f}), off by {off:.0e}", flush=True)
        for keys, warps, stages, splits in BLOCKS:
            programs = 16 // splits if requests == 1 else splits
            eight_bits.BLOCKS = eight_bits.Blocks(keys, warps, stages)
            name = f"{keys},{warps},{stages},{programs}"
            with suppress(RuntimeError):
                took, off = case.measure(FLOAT8, programs)
                print(f"            {name:12} {took:6.1f} ({size / took:.2f}), off by {off:.0e}", flush=True)


@dataclass
class _Case:
    """Queries of some requests, and the keys and values of their streams."""

    span: Span
    q: Tensor
    k: Tensor
    v: Tensor
    c: Tensor

    @classmethod
    def of(cls, requests: int, streams: int) -> "_Case":
        config, pages = shape_124m(MOST_TOKENS), -(-streams // PAGE)
        heads, width = config.n_head, config.head_width
        k, v = torch.randn(2, heads, requests * pages * PAGE, width, device="cuda", dtype=torch.bfloat16)
        table = torch.randperm(requests * pages, device="cuda").int().view(requests, pages)
        lane = torch.arange(requests, dtype=torch.int32, device="cuda")
        span = Span(PAGE, table, lane, 2 * lane, torch.full_like(lane, 2), torch.full_like(lane, streams))
        q = torch.randn(2 * requests, heads, width, device="cuda", dtype=torch.bfloat16)
        return cls(span, q, k, v, -torch.rand(requests * pages * PAGE, device="cuda"))

    def measure(self, dtype: torch.dtype, splits: int) -> tuple[float, float]:
        """Return the microseconds of the kernel for a cache of this type, and how far off the first request is."""
        heads, slots, width = self.k.shape
        parts = Parts.empty(self.span.batch_size, len(self.q), heads, width, splits, self.q.device)
        out, k, v = torch.empty_like(self.q), self.k.to(dtype), self.v.to(dtype)
        if dtype == FLOAT8:
            stored = v.view(torch.uint8).view(heads, slots // PAGE, PAGE, width).transpose(2, 3).contiguous()
            stored = stored.view(FLOAT8).view(v.shape)
            launch = lambda: eight_bits.eight_bit_attention(  # noqa: E731
                queries=self.q, keys=k, values=stored, cumulative=self.c, span=self.span, out=out, parts=parts, most=2
            )
        else:
            launch = lambda: paged_attention(  # noqa: E731
                queries=self.q, keys=k, values=v, span=self.span, out=out, parts=parts, most=2
            )
        return microseconds(launch), self._off(out[:2], k, v, self.c if dtype == FLOAT8 else torch.zeros_like(self.c))

    def _off(self, out: Tensor, k: Tensor, v: Tensor, c: Tensor) -> float:
        """Return how far the first request's output is from torch's in float32."""
        length, width = int(self.span.length[0]), self.q.shape[-1]
        slots = (self.span.table[0].long()[:, None] * PAGE + torch.arange(PAGE, device="cuda")).flatten()[:length]
        logits = self.q[:2].transpose(0, 1).float() @ k[:, slots].float().mT + c[slots]
        hidden = torch.ones(2, length, dtype=torch.bool, device="cuda").triu(length - 1)
        p = (logits * width**-0.5).masked_fill(hidden, -torch.inf).softmax(-1) * c[slots].exp()
        return float((out.float() - (p @ v[:, slots].float()).transpose(0, 1)).abs().max())


if __name__ == "__main__":
    main()
