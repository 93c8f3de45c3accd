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

from thoughtbubbles.engine.cuda.kernels.attention import KEYS_AT_ONCE, LOG2_E, Parts, attend, slots_of
from thoughtbubbles.engine.cuda.kernels.barrier import arrive, first_goal, prefetch, wait
from thoughtbubbles.engine.cuda.kernels.linear import gelu, head_columns, row_facts, store_heads
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.engine.cuda.kernels.tiles import precision
from thoughtbubbles.model import ModelConfig
from thoughtbubbles.model.transformer import Block

MOST_ROWS = 32
"""The largest usual number of rows for which one kernel computes all layers of a segment."""
MOST_SPLITS = 8
"""The most programs that share the keys of one batch slot and head."""
WARPS = 8
COLUMNS, FEW_COLUMNS = 32, 8
"""Columns of a tile of products with more outputs than the model is wide, and of the others."""


def few_enough(x: Tensor, usual: int) -> bool:
    """Return whether one kernel computes all layers of a segment with usually so many rows, of the dtype of x.

    In float32 it does not: sums must be bitwise equal in any batch.
    """
    return x.dtype != torch.float32 and usual <= MOST_ROWS


@dataclass(frozen=True)
class Team:
    """The programs of a kernel, which wait for each other."""

    programs: int
    """No more than multiprocessors, so that all of them run at the same time; one in Triton's interpreter."""
    splits: int
    """Programs that share the keys of one batch slot and head."""
    arrivals: Tensor
    """(1,) int64, as `kernels.barrier` says."""

    @classmethod
    def of(cls, config: ModelConfig, device: torch.device, *, batch_size: int) -> Self:
        """Return a team for the layers of a step, whose kernels never run at the same time.

        More programs than have something to do would only make the others wait longer.
        """
        cuda = device.type == "cuda"
        most = torch.cuda.get_device_properties(device).multi_processor_count if cuda else 1
        tasks = batch_size * config.n_head
        splits = min(MOST_SPLITS, triton.next_power_of_2(max(1, most // tasks)))
        tiles = (triton.cdiv(config.n_embd, FEW_COLUMNS), triton.cdiv(4 * config.n_embd, COLUMNS))
        programs = min(most, max(*tiles, tasks * splits))
        return cls(programs, splits, torch.zeros(1, dtype=torch.int64, device=device))


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
    tile = next(n for n in (8, 16, 32) if rows.usual <= n or n == 32)
    _layers[(team.programs,)](
        table=table.addresses, x=x, queries=queries, attended=attended, hidden=hidden, outputs=parts.outputs,
        weights=parts.weights, merges=parts.arrivals, pages=rows.table, lanes=rows.lane, starts=rows.start,
        counts=rows.count, lengths=rows.length, live=rows.live, slots=rows.slot, score=rows.score, cosines=rows.cos,
        sines=rows.sin, arrivals=team.arrivals, eps=block.ln_1.eps, scale=width**-0.5 * LOG2_E,
        table_stride=rows.table.stride(0), head_stride=table.head_stride, layers=len(table.addresses),
        BIASED=block.mlp.c_fc.bias is not None, SCORED=block.attn.scored, TANH=block.mlp.approximate == "tanh",
        D=x.shape[1], HIDDEN=hidden.shape[1], HEADS=heads, WIDTH=width, HALF=half,
        BLOCKS=triton.cdiv(width // 2, half), SLOTS=rows.batch_size, PAGE=rows.page_size,
        CHANNELS=max(16, triton.next_power_of_2(width)), QUERIES=max(16, triton.next_power_of_2(rows.most)),
        KEYS=KEYS_AT_ONCE, SPLITS=parts.splits, ROWS=tile, MORE_ROWS=max(16, tile),
        COLUMNS=COLUMNS, FEW=FEW_COLUMNS, SHARES=WARPS, DEPTH=_depth(x, tile), HIDDEN_DEPTH=_depth(hidden, tile),
        PRECISION=precision(x), PROGRAMS=team.programs, num_warps=WARPS, num_stages=3,
        launch_cooperative_grid=team.programs > 1,
    )  # fmt: skip


def _depth(x: Tensor, tile: int) -> int:
    """Return the inputs of x that a warp multiplies at once, the most that divide its share and fit in memory."""
    most = 4096 // (max(16, tile) * x.element_size())
    return next((n for n in (128, 64, 32) if n <= most and x.shape[1] % (n * WARPS) == 0), 32)


@triton.jit(do_not_specialize=["table_stride", "layers"])
def _layers(
    table, x, queries, attended, hidden, outputs, weights, merges, pages, lanes, starts, counts, lengths, live, slots,
    score, cosines, sines, arrivals, eps, scale, table_stride, head_stride, layers,
    BIASED: tl.constexpr, SCORED: tl.constexpr, TANH: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, BLOCKS: tl.constexpr, SLOTS: tl.constexpr,
    PAGE: tl.constexpr, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, MORE_ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEW: tl.constexpr, SHARES: tl.constexpr,
    DEPTH: tl.constexpr, HIDDEN_DEPTH: tl.constexpr, PRECISION: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Each part reads what it needs of weights before it waits for the results of the part before."""
    rows, goal = tl.load(live), first_goal(arrivals, PROGRAMS)
    for layer in tl.range(0, layers, num_stages=1):
        own = table + layer * 14
        gain_1, shift_1 = _at(own, 0, x), _at(own, 1, x, BIASED)
        heads, heads_bias = _at(own, 2, x), _at(own, 3, x, BIASED)
        proj, proj_bias = _at(own, 4, x), _at(own, 5, x, BIASED)
        gain_2, shift_2 = _at(own, 6, x), _at(own, 7, x, BIASED)
        fc, fc_bias = _at(own, 8, x), _at(own, 9, x, BIASED)
        mlp, mlp_bias = _at(own, 10, x), _at(own, 11, x, BIASED)
        keys, values = _at(own, 12, x), _at(own, 13, x)
        _project_heads(
            x, gain_1, shift_1, heads, heads_bias, queries, keys, values, slots, score, cosines, sines, rows, eps,
            head_stride, arrivals, goal - PROGRAMS, layer,
            D, HEADS, WIDTH, HALF, BLOCKS, SCORED, ROWS, SHARES, DEPTH, PRECISION, PROGRAMS,
        )  # fmt: skip
        arrive(arrivals, PROGRAMS)
        _ahead(proj, D, D, FEW, PROGRAMS)
        _ahead(fc, HIDDEN, D, COLUMNS, PROGRAMS)
        _attend(
            queries, keys, values, pages, lanes, starts, counts, lengths, attended, outputs, weights, merges, scale,
            table_stride, head_stride, arrivals, goal,
            SLOTS, PAGE, HEADS, WIDTH, CHANNELS, QUERIES, KEYS, SPLITS, PRECISION, PROGRAMS,
        )  # fmt: skip
        arrive(arrivals, PROGRAMS)
        _ahead(mlp, D, HIDDEN, FEW, PROGRAMS)
        _residual_linear(
            attended, proj, proj_bias, x, score, rows, arrivals, goal + PROGRAMS,
            D, D, FEW, MORE_ROWS, SHARES, DEPTH, PRECISION, PROGRAMS,
        )  # fmt: skip
        arrive(arrivals, PROGRAMS)
        _gelu_linear(
            x, gain_2, shift_2, fc, fc_bias, hidden, rows, eps, arrivals, goal + 2 * PROGRAMS,
            HIDDEN, D, TANH, COLUMNS, ROWS, SHARES, DEPTH, PRECISION, PROGRAMS,
        )  # fmt: skip
        arrive(arrivals, PROGRAMS)
        if layer + 1 < layers:
            _ahead(_at(own + 14, 2, x), 3 * D, D, COLUMNS, PROGRAMS)
        _residual_linear(
            hidden, mlp, mlp_bias, x, score, rows, arrivals, goal + 3 * PROGRAMS,
            D, HIDDEN, FEW, MORE_ROWS, SHARES, HIDDEN_DEPTH, PRECISION, PROGRAMS,
        )  # fmt: skip
        if layer + 1 < layers:
            arrive(arrivals, PROGRAMS)
        goal += 5 * PROGRAMS


@triton.jit
def _at(table, field: tl.constexpr, like, PRESENT: tl.constexpr = True):
    """Return the pointer in a field of a layer's table, of the type of `like`; None if it is not present."""
    pointer = None
    if PRESENT:
        pointer = tl.multiple_of(tl.load(table + field).to(like.dtype), 16)
    return pointer


@triton.jit
def _ahead(weight, OUTPUTS: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, PROGRAMS: tl.constexpr):
    """Start to bring the weights of this program's first tile closer.

    The columns of queries, keys and values lie elsewhere, but all programs together bring all weights, and into a cache
    that all share.
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
    arrivals, goal, layer,
    D: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, BLOCKS: tl.constexpr,
    SCORED: tl.constexpr, ROWS: tl.constexpr, SHARES: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
    PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Write queries, keys and values of LN(x), as `linear.project_heads` does; a tile is HALF channels and partners."""
    program = tl.program_id(0)
    TILES: tl.constexpr = 3 * HEADS * BLOCKS
    tiles = TILES * tl.cdiv(rows, ROWS)
    row = program // TILES * ROWS + tl.arange(0, ROWS)
    part, first, begin, column = head_columns(program % TILES, HEADS, WIDTH, BLOCKS, 1, HALF)
    pieces, added = _pieces(weight, bias, column, (column >= 0) & (program < tiles), D, SHARES, DEPTH)
    c, cos, sin, slot = row_facts(part, begin, row, row < rows, slots, score, cosines, sines, WIDTH, HALF)
    gains, shifts = _affine(gain, shift, D, SHARES, DEPTH)
    if layer > 0:
        wait(arrivals, goal, PROGRAMS)
    for tile in tl.range(program, tiles, PROGRAMS, num_stages=1):
        if tile > program:
            row = tile // TILES * ROWS + tl.arange(0, ROWS)
            part, first, begin, column = head_columns(tile % TILES, HEADS, WIDTH, BLOCKS, 1, HALF)
            pieces, added = _pieces(weight, bias, column, column >= 0, D, SHARES, DEPTH)
            c, cos, sin, slot = row_facts(part, begin, row, row < rows, slots, score, cosines, sines, WIDTH, HALF)
        product = _normalised_product(
            x, pieces, gains, shifts, row, row < rows, eps, D, 2 * HALF, ROWS, SHARES, DEPTH, PRECISION
        )
        store_heads(
            product + added[None, :], part, first, begin, row, row < rows, c, cos, sin, slot, queries, keys, values,
            None, None, head_stride, HEADS, WIDTH, SCORED, 1, ROWS, HALF,
        )  # fmt: skip


@triton.jit
def _gelu_linear(
    x, gain, shift, weight, bias, out, rows, eps, arrivals, goal,
    OUTPUTS: tl.constexpr, D: tl.constexpr, TANH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    SHARES: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Write GELU(W · LN(x) + b) to `out`."""
    program = tl.program_id(0)
    TILES: tl.constexpr = (OUTPUTS + COLUMNS - 1) // COLUMNS
    tiles = TILES * tl.cdiv(rows, ROWS)
    column = program % TILES * COLUMNS + tl.arange(0, COLUMNS)
    pieces, added = _pieces(weight, bias, column, (column < OUTPUTS) & (program < tiles), D, SHARES, DEPTH)
    gains, shifts = _affine(gain, shift, D, SHARES, DEPTH)
    wait(arrivals, goal, PROGRAMS)
    for tile in tl.range(program, tiles, PROGRAMS, num_stages=1):
        row = tile // TILES * ROWS + tl.arange(0, ROWS)
        if tile > program:
            column = tile % TILES * COLUMNS + tl.arange(0, COLUMNS)
            pieces, added = _pieces(weight, bias, column, column < OUTPUTS, D, SHARES, DEPTH)
        product = _normalised_product(
            x, pieces, gains, shifts, row, row < rows, eps, D, COLUMNS, ROWS, SHARES, DEPTH, PRECISION
        )
        y = gelu(product + added[None, :], TANH).to(out.dtype.element_ty)
        mask = (row < rows)[:, None] & (column < OUTPUTS)[None, :]
        tl.store(out + row[:, None] * OUTPUTS + column[None, :], y, mask=mask)


@triton.jit
def _residual_linear(
    x, weight, bias, residual, score, rows, arrivals, goal,
    OUTPUTS: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, SHARES: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Add exp(c) · (W · x + b) to `residual`, of which each tile is always the same program's."""
    program = tl.program_id(0)
    TILES: tl.constexpr = (OUTPUTS + COLUMNS - 1) // COLUMNS
    tiles = TILES * tl.cdiv(rows, ROWS)
    row = program // TILES * ROWS + tl.arange(0, ROWS)
    column = program % TILES * COLUMNS + tl.arange(0, COLUMNS)
    pieces, added = _pieces(weight, bias, column, (column < OUTPUTS) & (program < tiles), K, SHARES, DEPTH)
    c, before = _stream(residual, score, row, column, rows, OUTPUTS)
    wait(arrivals, goal, PROGRAMS)
    for tile in tl.range(program, tiles, PROGRAMS, num_stages=1):
        if tile > program:
            row = tile // TILES * ROWS + tl.arange(0, ROWS)
            column = tile % TILES * COLUMNS + tl.arange(0, COLUMNS)
            pieces, added = _pieces(weight, bias, column, column < OUTPUTS, K, SHARES, DEPTH)
            c, before = _stream(residual, score, row, column, rows, OUTPUTS)
        product = _product(x, pieces, row, row < rows, K, COLUMNS, ROWS, SHARES, DEPTH, PRECISION)
        y = before.to(tl.float32) + tl.exp(c)[:, None] * (product + added[None, :])
        tl.store(residual + row[:, None] * OUTPUTS + column[None, :], y.to(residual.dtype.element_ty),
                 mask=(row < rows)[:, None] & (column < OUTPUTS)[None, :])  # fmt: skip


@triton.jit
def _stream(residual, score, row, column, rows, OUTPUTS: tl.constexpr):
    """Return the scores of rows, and a tile of the streams."""
    mask = (row < rows)[:, None] & (column < OUTPUTS)[None, :]
    before = tl.load(residual + row[:, None] * OUTPUTS + column[None, :], mask=mask, other=0.0, cache_modifier=".cg")
    return tl.load(score + row, mask=row < rows, other=0.0), before


@triton.jit
def _attend(
    queries, keys, values, table, lanes, starts, counts, lengths, out, outputs, weights, merges, scale, table_stride,
    head_stride, arrivals, goal,
    SLOTS: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Write the attention of the queries to `out`, as `paged_attention` does."""
    program = tl.program_id(0)
    b, head, split, used, share, count, length, start, lane, slot = _part(
        program, table, lanes, starts, counts, lengths, table_stride, SLOTS, PAGE, HEADS, KEYS, SPLITS
    )
    if PROGRAMS > 1:
        at = head * head_stride.to(tl.int64) + slot.to(tl.int64) * WIDTH
        prefetch(keys + at)
        prefetch(values + at)
    wait(arrivals, goal, PROGRAMS)
    for item in tl.range(program, SLOTS * HEADS * SPLITS, PROGRAMS, num_stages=1):
        if item > program:
            b, head, split, used, share, count, length, start, lane, slot = _part(
                item, table, lanes, starts, counts, lengths, table_stride, SLOTS, PAGE, HEADS, KEYS, SPLITS
            )
        if split < used:
            attend(
                b, head, split, used, share, count, length, start, slot, queries, keys, values,
                table + lane * table_stride, out, outputs, weights, merges, scale, head_stride,
                PAGE, HEADS, WIDTH, CHANNELS, QUERIES, KEYS, SPLITS, PRECISION,
            )  # fmt: skip


@triton.jit
def _part(
    item, table, lanes, starts, counts, lengths, table_stride,
    SLOTS: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Return the facts of a part of the keys of a batch slot and head; none is used where there is nothing to do."""
    b, head, split = item // HEADS % SLOTS, item % HEADS, item // (HEADS * SLOTS)
    count, length = tl.load(counts + b), tl.load(lengths + b)
    start, lane = tl.load(starts + b), tl.load(lanes + b)
    share = tl.maximum(tl.cdiv(tl.cdiv(length, SPLITS), KEYS), 1) * KEYS
    used = tl.where((count > 0) & (lane >= 0) & (split < SPLITS), tl.cdiv(length, share), 0)
    end = tl.where(split < used, tl.minimum(length, (split + 1) * share), 0)
    slot = slots_of(table + lane * table_stride, split * share + tl.arange(0, KEYS), end, PAGE)
    return b, head, split, used, share, count, length, start, lane, slot


@triton.jit
def _pieces(weight, bias, column, present, K: tl.constexpr, SHARES: tl.constexpr, DEPTH: tl.constexpr):
    """Return the weights of the columns that are present, in pieces (SHARES,COLUMNS,DEPTH), and their bias."""
    pieces, added = (), tl.zeros(column.shape, tl.float32)
    for start in tl.static_range(0, K, SHARES * DEPTH):
        k = (start + tl.arange(0, SHARES)[:, None] * DEPTH + tl.arange(0, DEPTH)[None, :])[:, None, :]
        mask = present[None, :, None] & (k < K)
        pieces = pieces + (tl.load(weight + column[None, :, None] * K + k, mask=mask, other=0.0),)  # noqa: RUF005
    if bias is not None:
        added = tl.load(bias + column, mask=present, other=0.0).to(tl.float32)
    return pieces, added


@triton.jit
def _affine(gain, shift, K: tl.constexpr, SHARES: tl.constexpr, DEPTH: tl.constexpr):
    """Return gain and shift of the inputs in pieces (SHARES,1,DEPTH)."""
    gains, shifts = (), ()
    for start in tl.static_range(0, K, SHARES * DEPTH):
        k = start + tl.arange(0, SHARES)[:, None] * DEPTH + tl.arange(0, DEPTH)[None, :]
        gains = gains + (tl.load(gain + k, mask=k < K, other=0.0)[:, None, :],)  # noqa: RUF005
        if shift is not None:
            shifts = shifts + (tl.load(shift + k, mask=k < K, other=0.0)[:, None, :],)  # noqa: RUF005
        else:
            shifts = shifts + (tl.zeros([SHARES, 1, DEPTH], tl.float32),)  # noqa: RUF005
    return gains, shifts


@triton.jit
def _inputs(
    x, row, present, start,
    K: tl.constexpr, SHARES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Return a piece (SHARES,ROWS,DEPTH) of the inputs, which other programs have just written."""
    k = (start + tl.arange(0, SHARES)[:, None] * DEPTH + tl.arange(0, DEPTH)[None, :])[:, None, :]
    mask = present[None, :, None] & (k < K)
    return tl.load(x + row[None, :, None] * K + k, mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit
def _normalised_product(
    x, pieces, gains, shifts, row, present, eps,
    K: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, SHARES: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return Σ LN(x)[row, k] · weight[column, k] over all k."""
    N: tl.constexpr = (K + SHARES * DEPTH - 1) // (SHARES * DEPTH)
    within = (tl.arange(0, SHARES)[:, None] * DEPTH + tl.arange(0, DEPTH)[None, :])[:, None, :]
    inputs, total = (), tl.zeros([SHARES, ROWS, DEPTH], tl.float32)
    for i in tl.static_range(N):
        inputs = inputs + (_inputs(x, row, present, i * SHARES * DEPTH, K, SHARES, DEPTH),)  # noqa: RUF005
    for i in tl.static_range(N):
        total += inputs[i].to(tl.float32)
    mean = (tl.sum(tl.sum(total, axis=2), axis=0) / K)[None, :, None]
    squares = tl.zeros([SHARES, ROWS, DEPTH], tl.float32)
    for i in tl.static_range(N):
        centred = tl.where(i * SHARES * DEPTH + within < K, inputs[i].to(tl.float32) - mean, 0.0)
        squares += centred * centred
    rate = (1.0 / tl.sqrt(tl.sum(tl.sum(squares, axis=2), axis=0) / K + eps))[None, :, None]
    sums = tl.zeros([SHARES, COLUMNS, ROWS], tl.float32)
    for i in tl.static_range(N):
        y = (inputs[i].to(tl.float32) - mean) * rate * gains[i].to(tl.float32) + shifts[i].to(tl.float32)
        sums = tl.dot(pieces[i], tl.permute(y.to(x.dtype.element_ty), (0, 2, 1)), sums, input_precision=PRECISION)
    return tl.trans(tl.sum(sums, axis=0))  # few rows pad a tile less as its columns


@triton.jit
def _product(
    x, pieces, row, present,
    K: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, SHARES: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return Σ x[row, k] · weight[column, k] over all k; each warp adds up a share of the inputs of a piece."""
    N: tl.constexpr = (K + SHARES * DEPTH - 1) // (SHARES * DEPTH)
    AHEAD: tl.constexpr = 3 if N > 3 else N
    inputs = ()
    for i in tl.static_range(AHEAD):
        inputs = inputs + (_inputs(x, row, present, i * SHARES * DEPTH, K, SHARES, DEPTH),)  # noqa: RUF005
    sums = tl.zeros([SHARES, ROWS, COLUMNS], tl.float32)
    for i in tl.static_range(N):
        sums = tl.dot(inputs[i], tl.permute(pieces[i], (0, 2, 1)), sums, input_precision=PRECISION)
        if i + AHEAD < N:
            inputs = inputs + (_inputs(x, row, present, (i + AHEAD) * SHARES * DEPTH, K, SHARES, DEPTH),)  # noqa: RUF005
    return tl.sum(sums, axis=0)
