"""The kernels of the training step alone: right on this device, and at which part of its memory's speed.

    python -m benchmarks.train_kernels [--rows 65536]

Beside them the ceilings: a copy, the step's matrix products, and attention by flash and by cuDNN.
"""

# ruff: noqa: SLF001 - the kernels are tried with tiles that are theirs alone to choose

import argparse
from collections.abc import Callable
from types import ModuleType

import torch
import triton.testing
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.attention import attenuate, score_channel
from model.rotary import Rotation, rotate
from training.kernels import cross_entropy, fork_scores, gelu, heads, residual

WIDTH, HEADS, VOCABULARY = 768, 12, 50_304
Way = Callable[[], object]


def measure_kernels(rows: int = 65536) -> None:
    """Print the ceilings, then errors and speeds of each kernel with each of its tiles."""
    for measure in (_ceilings, _attention, _heads, _residual, _fork_scores, _gelu, _cross_entropy):
        try:
            measure(rows)
        except Exception as error:
            print(f"{measure.__name__}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        torch.cuda.empty_cache()


def _milliseconds(way: Way) -> float:
    return float(triton.testing.do_bench(way, warmup=10, rep=40, return_mode="median"))


def _tell(name: str, way: Way, moved: float, tile: str = "") -> None:
    time = _milliseconds(way)
    print(f"{name:<24} {tile:<22} {1e3 * time:8.0f} us {moved / time / 1e6:6.0f} GB/s", flush=True)


def _error(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> str:
    return " ".join(
        f"{float((g.float() - w.float()).norm() / w.float().norm()):.1e}" for g, w in zip(got, want, strict=True)
    )


def _random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def _copy() -> None:
    big = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    to = torch.empty_like(big)
    _tell("copy", lambda: to.copy_(big), 2 * big.nbytes)


def _ceilings(rows: int) -> None:
    _copy()
    for outputs, inputs in ((2304, 768), (768, 768), (3072, 768), (768, 3072)):
        x, w, dy = _random(rows, inputs), _random(outputs, inputs), _random(rows, outputs)
        flops = 2 * rows * outputs * inputs / 1e9
        ways = {
            "x w'": lambda x=x, w=w: x @ w.T,
            "dy w": lambda dy=dy, w=w: dy @ w,
            "dy' x": lambda dy=dy, x=x: dy.T @ x,
        }
        rates = [f"{name} {flops / _milliseconds(way):.0f}" for name, way in ways.items()]
        print(f"product {inputs} to {outputs}: TFLOP/s {', '.join(rates)}", flush=True)
    x, w = _random(32768, WIDTH), _random(VOCABULARY, WIDTH)
    dy = x @ w.T
    flops = 2 * 32768 * WIDTH * VOCABULARY / 1e9
    rates = [f"{flops / _milliseconds(way):.0f}" for way in (lambda: x @ w.T, lambda: dy @ w, lambda: dy.T @ x)]
    print(f"head: TFLOP/s {', '.join(rates)}", flush=True)


def _attention(rows: int) -> None:
    for streams in (512, 1024, 2048):
        batch = rows // streams
        q, k, v = (_random(batch, streams, HEADS, 64).transpose(1, 2).requires_grad_() for _ in range(3))
        told = []
        for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION)):
            with sdpa_kernel(backend):
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                dy = torch.randn_like(y)
                forward = _milliseconds(lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
                back = _milliseconds(
                    lambda y=y, q=q, k=k, v=v, dy=dy: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True)
                )
            told.append(f"{name} {1e3 * forward:.0f} + {1e3 * back:.0f} us")
        print(f"attention S = {streams}: {', '.join(told)}", flush=True)


def _with_tiles(
    module: ModuleType, tiles: tuple[tuple[int, ...], ...], names: tuple[str, ...], way: Callable[[str], None]
) -> None:
    kept = [getattr(module, name) for name in names]
    for values in (tuple(kept), *tiles):
        for name, value in zip(names, values, strict=True):
            setattr(module, name, value)
        way(" ".join(map(str, values)))
    for name, value in zip(names, kept, strict=True):
        setattr(module, name, value)


def _heads(rows: int) -> None:
    qkv, bias = _random(1, rows, 3 * WIDTH).requires_grad_(), _random(3 * WIDTH, dtype=torch.float32).requires_grad_()
    angle, score = (
        500 * torch.rand(1, 1, rows, 32, device="cuda"),
        (-torch.rand(1, rows, device="cuda")).requires_grad_(),
    )
    by = Rotation(angle.cos(), angle.sin())
    q, k, v = (qkv.float() + bias).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    want = (*score_channel(rotate(q, by), rotate(k, by), score), attenuate(v, score))
    got = heads.attention_heads(qkv, bias, *by, score, heads=HEADS, biased=True, attenuated=True)
    dy = tuple(torch.randn_like(each) for each in got)
    inputs = qkv, bias, score
    back = torch.autograd.grad(got, inputs, dy), torch.autograd.grad(want, inputs, [each.float() for each in dy])
    print(f"heads: errors {_error(got, want)}, of gradients {_error(*back)}", flush=True)
    del want, back, got
    flat = [each.detach().flatten(0, -2) for each in (qkv, *by)]
    c = score.detach().flatten()
    dq = [_random(rows, WIDTH) for _ in range(4)]
    settings = HEADS, True, True
    _with_tiles(
        heads,
        ((2, 8), (2, 4), (1, 8)),
        ("_ROWS", "_WARPS"),
        lambda tile: _tell(
            "heads",
            lambda: heads._heads(flat[0], bias.detach(), flat[1], flat[2], c, *settings),
            rows * (12 * WIDTH + 256),
            tile,
        ),
    )
    _with_tiles(
        heads,
        ((2, 1056), (4, 528), (8, 396)),
        ("_WARPS", "_MOST_PROGRAMS"),
        lambda tile: _tell(
            "heads backward",
            lambda: heads._heads_backward(*dq, flat[1], flat[2], c, *settings),
            rows * (14 * WIDTH + 256),
            tile,
        ),
    )


def _residual(rows: int) -> None:
    x, update = (_random(rows, WIDTH).requires_grad_() for _ in range(2))
    bias, weight, norm_bias = (_random(WIDTH, dtype=torch.float32).requires_grad_() for _ in range(3))
    score = (-torch.rand(rows, device="cuda")).requires_grad_()
    y = x.float() + score.exp()[:, None] * (update.float() + bias)
    want = y, F.layer_norm(y, (WIDTH,), weight, norm_bias)
    got = residual.update_and_norm(x, update, bias, score, weight, norm_bias, 1e-5)
    dy = tuple(torch.randn_like(each) for each in got)
    inputs = x, update, bias, score, weight, norm_bias
    back = torch.autograd.grad(got, inputs, dy), torch.autograd.grad(want, inputs, [each.float() for each in dy])
    print(f"residual: errors {_error(got, want)}, of gradients {_error(*back)}", flush=True)
    x, update, bias, weight, norm_bias, score = (t.detach() for t in (x, update, bias, weight, norm_bias, score))
    _with_tiles(
        residual,
        ((2, 4), (1, 2), (2, 8)),
        ("_ROWS", "_WARPS"),
        lambda tile: _tell(
            "residual",
            lambda: residual._update_and_norm(x, update, bias, score, weight, norm_bias, 1e-5),
            rows * 8 * WIDTH,
            tile,
        ),
    )
    _with_tiles(
        residual,
        ((1, 4, 528), (1, 2, 1056), (1, 8, 396), (2, 8, 264)),
        ("_ROWS", "_WARPS", "_MOST_PROGRAMS"),
        lambda tile: _tell(
            "residual backward",
            lambda: residual._update_and_norm_backward(*dy, x, update, bias, score, weight, 1e-5),
            rows * 12 * WIDTH,
            tile,
        ),
    )


def _fork_scores(rows: int) -> None:
    x, update = (_random(rows, WIDTH).requires_grad_() for _ in range(2))
    bias, weight, norm_bias = (_random(WIDTH, dtype=torch.float32).requires_grad_() for _ in range(3))
    projection = _random(2, WIDTH, dtype=torch.float32).requires_grad_()
    score = (-torch.rand(rows, device="cuda")).requires_grad_()
    inputs = x, update, bias, score, weight, norm_bias, projection
    got = fork_scores.update_and_score(*inputs, 1e-5)
    y = x.float() + score.exp()[:, None] * (update.float() + bias)
    want = y, F.layer_norm(y, (WIDTH,), weight, norm_bias) @ projection.T
    dy = tuple(torch.randn_like(each) for each in got)
    back = torch.autograd.grad(got, inputs, dy), torch.autograd.grad(want, inputs, [each.float() for each in dy])
    print(f"fork scores: errors {_error(got, want)}, of gradients {_error(*back)}", flush=True)
    plain = [each.detach() for each in inputs]
    streams, first = x.detach(), lambda: fork_scores._update_and_score(*plain, 1e-5)
    back_again = lambda: fork_scores._update_and_score_backward(*dy, streams, *plain[1:], 1e-5)  # noqa: E731
    way = lambda tile: _tell("fork scores", first, rows * 6 * WIDTH, tile)  # noqa: E731
    _with_tiles(fork_scores, ((8,), (2,)), ("_WARPS",), way)
    way = lambda tile: _tell("fork scores backward", back_again, rows * 10 * WIDTH, tile)  # noqa: E731
    _with_tiles(fork_scores, ((8, 528), (4, 660)), ("_WARPS", "_MOST_PROGRAMS"), way)


def _gelu(rows: int) -> None:
    width = 4 * WIDTH
    x, bias = _random(rows, width).requires_grad_(), _random(width, dtype=torch.float32).requires_grad_()
    want, got = F.gelu(x.float() + bias), gelu.biased_gelu(x, bias, tanh=False)
    dy = torch.randn_like(got)
    back = torch.autograd.grad(got, (x, bias), dy), torch.autograd.grad(want, (x, bias), dy.float())
    print(f"gelu: errors {_error((got,), (want,))}, of gradients {_error(*back)}", flush=True)
    x, bias = x.detach(), bias.detach()
    _with_tiles(
        gelu,
        ((4, 512, 4), (2, 1024, 4)),
        ("_ROWS", "_COLUMNS", "_WARPS"),
        lambda tile: _tell("gelu", lambda: gelu._gelu(x, bias, False), rows * 4 * width, tile),
    )
    _with_tiles(
        gelu,
        ((4, 512, 4, 88), (2, 1024, 4, 264), (2, 512, 4, 176)),
        ("_ROWS", "_COLUMNS", "_WARPS", "_MOST_PROGRAMS"),
        lambda tile: _tell("gelu backward", lambda: gelu._gelu_backward(dy, x, bias, False), rows * 6 * width, tile),
    )


def _cross_entropy(rows: int) -> None:
    rows //= 4
    logits, targets = _random(rows, VOCABULARY), torch.randint(VOCABULARY, (rows,), device="cuda")
    targets[::7] = -1
    some = logits[:512].float().requires_grad_()
    loss = F.cross_entropy(some, targets[:512], ignore_index=-1, reduction="sum") / 1000
    scale = torch.tensor(1e-3, device="cuda")
    losses, gradient = cross_entropy._loss_and_gradient(logits, targets, scale, -1)
    want = loss.detach()[None], torch.autograd.grad(loss, some)[0]
    print(f"cross entropy: errors {_error((losses[None, :512].sum(1) / 1000, gradient[:512]), want)}", flush=True)
    _with_tiles(
        cross_entropy,
        ((16384, 32), (4096, 8), (8192, 32)),
        ("_COLUMNS", "_WARPS"),
        lambda tile: _tell(
            "cross entropy",
            lambda: cross_entropy._loss_and_gradient(logits, targets, scale, -1),
            rows * 4 * VOCABULARY,
            tile,
        ),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=65536)
    measure_kernels(parser.parse_args().rows)
