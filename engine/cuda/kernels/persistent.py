"""All layers of a segment in one kernel, for few rows (SPEC.md, "Attenuated block").

With few rows a layer reads its weights in less time than a launch takes. So a program on every multiprocessor goes
through all layers, and waits at a barrier where the next product needs the results of other programs.

Letters: M rows that there may be, D model width, K inputs, N heads, H head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from thoughtbubbles.engine.cuda.kernels.attention import KEYS_AT_ONCE, LOG2_E, Parts, attend
from thoughtbubbles.engine.cuda.kernels.barrier import arrive, first_goal, prefetch, wait
from thoughtbubbles.engine.cuda.kernels.linear import (
    add_bias,
    add_residual,
    head_columns,
    store_gelu,
    store_heads,
)
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.engine.cuda.kernels.tiles import precision
from thoughtbubbles.model.transformer import Block

MOST_ROWS = 32
"""The largest usual number of rows for which one kernel computes all layers of a segment."""
WARPS = 8
COLUMNS, FEW_COLUMNS = 32, 8
"""Columns of a tile of products with more outputs than the model is wide, and of the others."""
STAGES = 4
EACH = 1
CLOCKS = None
_CHUNK = 256
"""Channels that are read at once for the moments of a row."""


def few_enough(x: Tensor, usual: int) -> bool:
    """Return whether one kernel computes all layers of a segment with usually so many rows, of the dtype of x.

    In float32 it does not: sums must be bitwise equal in any batch.
    """
    return x.dtype != torch.float32 and usual <= MOST_ROWS


@dataclass(frozen=True)
class Team:
    """The programs of a kernel, which wait for each other."""

    programs: int
    """As many as multiprocessors, so that all of them always run at the same time; one in Triton's interpreter."""
    arrivals: Tensor
    """(1,) int64, as `kernels.barrier` says."""

    @classmethod
    def on(cls, device: torch.device) -> Self:
        """Return a team for kernels that never run at the same time."""
        cuda = device.type == "cuda"
        programs = EACH * torch.cuda.get_device_properties(device).multi_processor_count if cuda else 1
        return cls(programs, torch.zeros(1, dtype=torch.int64, device=device))


@dataclass(frozen=True)
class LayerTable:
    """Where the weights of a segment's layers are, and their keys and values."""

    addresses: Tensor
    """(layers,14) int64: weight and bias of LN_1, c_attn, c_proj, LN_2, c_fc and the MLP's c_proj; keys and values."""
    block: Block
    """A layer, for what all have in common."""
    head_stride: int
    """Of keys and values."""

    @classmethod
    def of(cls, blocks: Sequence[Block], keys: Tensor, values: Tensor) -> Self:
        """Return the table of a segment's layers; keys and values (layers,N,slots,H)."""
        rows = []
        for block, *cached in zip(blocks, keys, values, strict=True):
            parts = (block.ln_1, block.attn.c_attn, block.attn.c_proj, block.ln_2, block.mlp.c_fc, block.mlp.c_proj)
            tensors = [tensor for part in parts for tensor in (part.weight, part.bias)]
            rows.append([0 if tensor is None else tensor.data_ptr() for tensor in (*tensors, *cached)])
        return cls(torch.tensor(rows, dtype=torch.int64).to(keys.device), blocks[0], keys.stride(1))


def run_at_once(
    *, table: LayerTable, team: Team, x: Tensor, rows: Rows, queries: Tensor, attended: Tensor, hidden: Tensor,
    parts: Parts,
) -> None:  # fmt: skip
    """Run all layers of the table on x (M,D) in place, and write the keys and values of its live rows to the cache.

    Queries (M,N,H), `attended` (M,D), `hidden` (M,4D) and `parts` are scratch.
    """
    block, (_, heads, width) = table.block, queries.shape
    half = min(triton.next_power_of_2(max(16, width) // 2), COLUMNS // 2)
    tile = 16 if rows.usual <= 16 else 32
    _layers[(team.programs,)](
        table=table.addresses, x=x, queries=queries, attended=attended, hidden=hidden, outputs=parts.outputs,
        weights=parts.weights, merges=parts.arrivals, pages=rows.table, lanes=rows.lane, starts=rows.start,
        counts=rows.count, lengths=rows.length, live=rows.live, slots=rows.slot, score=rows.score, cosines=rows.cos,
        sines=rows.sin, arrivals=team.arrivals, clocks=CLOCKS, eps=block.ln_1.eps, scale=width**-0.5 * LOG2_E,
        table_stride=rows.table.stride(0), head_stride=table.head_stride, layers=len(table.addresses),
        BIASED=block.mlp.c_fc.bias is not None, SCORED=block.attn.scored, TANH=block.mlp.approximate == "tanh",
        D=x.shape[1], HIDDEN=hidden.shape[1], HEADS=heads, WIDTH=width, HALF=half,
        BLOCKS=triton.cdiv(width // 2, half), SLOTS=rows.batch_size, PAGE=rows.page_size,
        CHANNELS=max(16, triton.next_power_of_2(width)), QUERIES=max(16, triton.next_power_of_2(rows.most)),
        KEYS=KEYS_AT_ONCE, SPLITS=parts.splits, ROWS=tile, COLUMNS=COLUMNS, FEW=FEW_COLUMNS, SHARES=WARPS,
        DEPTH=_depth(x.shape[1], tile, x.element_size()), HIDDEN_DEPTH=_depth(hidden.shape[1], tile, x.element_size()), CHUNK=_CHUNK, STAGES=STAGES,
        PRECISION=precision(x), PROGRAMS=team.programs, num_warps=WARPS, num_stages=3,
        launch_cooperative_grid=team.programs > 1,
    )  # fmt: skip


def _depth(inputs: int, rows: int, size: int) -> int:
    """Return the inputs that a warp multiplies in one iteration, the most that divide its share and fit in memory."""
    return next((n for n in (128, 64, 32) if n * rows * size <= 4096 and inputs % (n * WARPS) == 0), 32)


@triton.jit(do_not_specialize=["table_stride", "layers"])
def _layers(
    table, x, queries, attended, hidden, outputs, weights, merges, pages, lanes, starts, counts, lengths, live, slots,
    score, cosines, sines, arrivals, clocks, eps, scale, table_stride, head_stride, layers,
    BIASED: tl.constexpr, SCORED: tl.constexpr, TANH: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, BLOCKS: tl.constexpr, SLOTS: tl.constexpr,
    PAGE: tl.constexpr, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEW: tl.constexpr, SHARES: tl.constexpr, DEPTH: tl.constexpr,
    HIDDEN_DEPTH: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
    PROGRAMS: tl.constexpr,
):  # fmt: skip
    rows, goal = tl.load(live), first_goal(arrivals, PROGRAMS)
    for layer in tl.range(0, layers, num_stages=1):
        own = table + layer * 14
        _project_heads(
            x, _at(own, 0, x), _at(own, 1, x, BIASED), _at(own, 2, x), _at(own, 3, x, BIASED), queries,
            _at(own, 12, x), _at(own, 13, x), slots, score, cosines, sines, rows, eps, head_stride,
            D, HEADS, WIDTH, HALF, BLOCKS, SCORED, ROWS, SHARES, DEPTH, CHUNK, STAGES, PRECISION, PROGRAMS,
        )  # fmt: skip
        _mark(clocks, layer, 0, PROGRAMS)
        arrive(arrivals, PROGRAMS)
        _ahead(_at(own, 4, x), D, D, FEW, PROGRAMS)
        _ahead(_at(own, 8, x), HIDDEN, D, COLUMNS, PROGRAMS)
        goal = wait(arrivals, goal, PROGRAMS)
        _mark(clocks, layer, 1, PROGRAMS)
        for item in tl.range(tl.program_id(0), SLOTS * HEADS * SPLITS, PROGRAMS, num_stages=1):
            b, head, split = item // HEADS % SLOTS, item % HEADS, item // (HEADS * SLOTS)
            count, length = tl.load(counts + b), tl.load(lengths + b)
            start, lane = tl.load(starts + b), tl.load(lanes + b)
            share = tl.maximum(tl.cdiv(tl.cdiv(length, SPLITS), KEYS), 1) * KEYS
            used = tl.cdiv(length, share)
            if (count > 0) & (split < used) & (lane >= 0) & (start >= 0):
                attend(
                    b, head, split, used, share, count, length, start, lane, queries, _at(own, 12, x),
                    _at(own, 13, x), pages, attended, outputs, weights, merges, scale, table_stride, head_stride,
                    PAGE, HEADS, WIDTH, CHANNELS, QUERIES, KEYS, SPLITS, PRECISION,
                )  # fmt: skip
        _mark(clocks, layer, 2, PROGRAMS)
        arrive(arrivals, PROGRAMS)
        goal = wait(arrivals, goal, PROGRAMS)
        _mark(clocks, layer, 3, PROGRAMS)
        _residual_linear(
            attended, _at(own, 4, x), _at(own, 5, x, BIASED), x, score, rows,
            D, D, FEW, ROWS, SHARES, DEPTH, STAGES, PRECISION, PROGRAMS,
        )  # fmt: skip
        _mark(clocks, layer, 4, PROGRAMS)
        arrive(arrivals, PROGRAMS)
        _ahead(_at(own, 10, x), D, HIDDEN, FEW, PROGRAMS)
        goal = wait(arrivals, goal, PROGRAMS)
        _mark(clocks, layer, 5, PROGRAMS)
        _gelu_linear(
            x, _at(own, 6, x), _at(own, 7, x, BIASED), _at(own, 8, x), _at(own, 9, x, BIASED), hidden, rows, eps,
            HIDDEN, D, TANH, COLUMNS, ROWS, SHARES, DEPTH, CHUNK, STAGES, PRECISION, PROGRAMS,
        )  # fmt: skip
        _mark(clocks, layer, 6, PROGRAMS)
        arrive(arrivals, PROGRAMS)
        if layer + 1 < layers:
            _ahead(_at(own + 14, 2, x), 3 * D, D, COLUMNS, PROGRAMS)
        goal = wait(arrivals, goal, PROGRAMS)
        _mark(clocks, layer, 7, PROGRAMS)
        _residual_linear(
            hidden, _at(own, 10, x), _at(own, 11, x, BIASED), x, score, rows,
            D, HIDDEN, FEW, ROWS, SHARES, HIDDEN_DEPTH, STAGES, PRECISION, PROGRAMS,
        )  # fmt: skip
        if layer + 1 < layers:
            _mark(clocks, layer, 8, PROGRAMS)
            arrive(arrivals, PROGRAMS)
            goal = wait(arrivals, goal, PROGRAMS)
            _mark(clocks, layer, 9, PROGRAMS)


@triton.jit
def _mark(clocks, layer, k: tl.constexpr, PROGRAMS: tl.constexpr):
    if clocks is not None:
        now = tl.inline_asm_elementwise("mov.u64 $0, %clock64;", "=l", [], dtype=tl.int64, is_pure=False, pack=1)
        tl.store(clocks + (layer * 10 + k) * PROGRAMS + tl.program_id(0), now)


@triton.jit
def _at(table, field: tl.constexpr, like, PRESENT: tl.constexpr = True):
    """Return the pointer in a field of a layer's table, of the type of `like`; None if it is not present."""
    pointer = None
    if PRESENT:
        pointer = tl.multiple_of(tl.load(table + field).to(like.dtype), 16)
    return pointer


@triton.jit
def _ahead(
    weight, OUTPUTS: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, PROGRAMS: tl.constexpr
):
    """Start to bring the weights of this program's first tile closer.

    Rotated columns lie elsewhere; but all programs together bring all weights, and into a cache that all share.
    """
    if PROGRAMS > 1:
        LINE: tl.constexpr = 1024 // weight.dtype.element_ty.primitive_bitwidth
        LINES: tl.constexpr = triton.next_power_of_2(K // LINE + 1)
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        if tl.program_id(0) * COLUMNS < OUTPUTS:
            k = tl.minimum(tl.arange(0, LINES) * LINE, K - 1)
            prefetch(weight + tl.minimum(column, OUTPUTS - 1)[:, None] * K + k[None, :])


@triton.jit
def _project_heads(
    x, gain, shift, weight, bias, queries, keys, values, slots, score, cosines, sines, rows, eps, head_stride,
    D: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, BLOCKS: tl.constexpr,
    SCORED: tl.constexpr, ROWS: tl.constexpr, SHARES: tl.constexpr, DEPTH: tl.constexpr, CHUNK: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Write queries, keys and values of LN(x), as `linear.project_heads` does; a tile is HALF channels and partners."""
    for tile in tl.range(tl.program_id(0), 3 * HEADS * BLOCKS, PROGRAMS, num_stages=1):
        part, first, begin, column = head_columns(tile, HEADS, WIDTH, BLOCKS, 1, HALF)
        for at in tl.range(0, rows, ROWS, num_stages=1):
            row = at + tl.arange(0, ROWS)
            product = _product(
                x, weight, row, row < rows, column, gain, shift, eps,
                D, 2 * HALF, ROWS, SHARES, DEPTH, CHUNK, STAGES, PRECISION,
            )  # fmt: skip
            store_heads(
                product, bias, part, first, begin, column, row, row < rows, queries, keys, values, None, None, slots,
                score, cosines, sines, head_stride, HEADS, WIDTH, SCORED, 1, ROWS, HALF,
            )  # fmt: skip


@triton.jit
def _gelu_linear(
    x, gain, shift, weight, bias, out, rows, eps,
    OUTPUTS: tl.constexpr, D: tl.constexpr, TANH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    SHARES: tl.constexpr, DEPTH: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
    PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Write GELU(W · LN(x) + b) to `out`."""
    for tile in tl.range(tl.program_id(0), tl.cdiv(OUTPUTS, COLUMNS), PROGRAMS, num_stages=1):
        column = tile * COLUMNS + tl.arange(0, COLUMNS)
        for at in tl.range(0, rows, ROWS, num_stages=1):
            row = at + tl.arange(0, ROWS)
            product = _product(
                x, weight, row, row < rows, tl.minimum(column, OUTPUTS - 1), gain, shift, eps,
                D, COLUMNS, ROWS, SHARES, DEPTH, CHUNK, STAGES, PRECISION,
            )  # fmt: skip
            store_gelu(product, bias, out, row, column, row < rows, OUTPUTS, TANH)


@triton.jit
def _residual_linear(
    x, weight, bias, residual, score, rows,
    OUTPUTS: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, SHARES: tl.constexpr,
    DEPTH: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Add exp(c) · (W · x + b) to `residual`."""
    for tile in tl.range(tl.program_id(0), tl.cdiv(OUTPUTS, COLUMNS), PROGRAMS, num_stages=1):
        column = tile * COLUMNS + tl.arange(0, COLUMNS)
        for at in tl.range(0, rows, ROWS, num_stages=1):
            row = at + tl.arange(0, ROWS)
            product = _product(
                x, weight, row, row < rows, tl.minimum(column, OUTPUTS - 1), None, None, 0.0,
                K, COLUMNS, ROWS, SHARES, DEPTH, K, STAGES, PRECISION,
            )  # fmt: skip
            add_residual(product, bias, residual, score, row, column, row < rows, OUTPUTS)


@triton.jit
def _moments(x, row, present, eps, D: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """Return mean and inverse deviation of the rows of x that are present, as LayerNorm defines them."""
    total = tl.zeros([ROWS, CHUNK], tl.float32)
    for first in tl.static_range(0, D, CHUNK):
        total += _some(x, row, present, first, D, CHUNK)
    mean = tl.sum(total, axis=1) / D
    squares = tl.zeros([ROWS, CHUNK], tl.float32)
    for first in tl.static_range(0, D, CHUNK):
        inside = (first + tl.arange(0, CHUNK) < D)[None, :]
        centred = tl.where(inside, _some(x, row, present, first, D, CHUNK) - mean[:, None], 0.0)
        squares += centred * centred
    return mean, 1.0 / tl.sqrt(tl.sum(squares, axis=1) / D + eps)


@triton.jit
def _some(x, row, present, first, D: tl.constexpr, CHUNK: tl.constexpr):
    d = first + tl.arange(0, CHUNK)
    mask = present[:, None] & (d < D)[None, :]
    return tl.load(x + row[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _product(
    x, weight, row, present, column, gain, shift, eps,
    K: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, SHARES: tl.constexpr, DEPTH: tl.constexpr,
    CHUNK: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return Σ y[row, k] · weight[column, k] over all k, where y is x, or its LayerNorm if there is a gain.

    Each warp adds up a share of the inputs, since with few columns there is not a tile for each.
    """
    sums = tl.zeros([SHARES, ROWS, COLUMNS], tl.float32)
    within = tl.arange(0, SHARES)[:, None] * DEPTH + tl.arange(0, DEPTH)[None, :]
    if gain is not None:
        g, s = _affine(gain, shift, within, K)
        mean, rate = _moments(x, row, present, eps, K, ROWS, CHUNK)
    for start in tl.range(0, K, SHARES * DEPTH, num_stages=STAGES):
        k = start + within
        at = row[None, :, None] * K + k[:, None, :]
        if K % (SHARES * DEPTH) == 0:
            w = tl.load(weight + column[None, :, None] * K + k[:, None, :])
            a = tl.load(x + at, mask=present[None, :, None], other=0.0)
        else:
            inside = (k < K)[:, None, :]
            w = tl.load(weight + column[None, :, None] * K + k[:, None, :], mask=inside, other=0.0)
            a = tl.load(x + at, mask=present[None, :, None] & inside, other=0.0)
        if gain is not None:
            y = (a.to(tl.float32) - mean[None, :, None]) * rate[None, :, None]
            a = (y * g[:, None, :] + s[:, None, :]).to(x.dtype.element_ty)
            g, s = _affine(gain, shift, k + SHARES * DEPTH, K)  # an iteration ahead, so that none waits for them
        sums = tl.dot(a, tl.permute(w, (0, 2, 1)), sums, input_precision=PRECISION)
    return tl.sum(sums, axis=0)


@triton.jit
def _affine(gain, shift, k, K: tl.constexpr):
    """Return gain and shift of inputs in float32; zeros beyond the last."""
    g, s = tl.load(gain + k, mask=k < K, other=0.0).to(tl.float32), tl.zeros(k.shape, tl.float32)
    if shift is not None:
        s = tl.load(shift + k, mask=k < K, other=0.0).to(tl.float32)
    return g, s
