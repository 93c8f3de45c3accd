"""The product of few rows, with their LayerNorm: what a program needs is all read before anything is computed.

With few rows a step is a chain of short kernels, and a program's time is the latency of what it reads. So weights are
on their way while rows are normalised, and warps share the inputs of a tile. Each thread reads the weights that it
gives to the tensor cores, so that they need not move.

Letters: C columns of a tile, K inputs.
"""

import triton
import triton.language as tl


@triton.jit
def column_of(c, first, other, HALF: tl.constexpr, WIDTH: tl.constexpr):
    """Return the output that is column `c` of a program's tile.

    Without HALF columns follow each other from `first` to `other`. Otherwise they are those of whole heads from head
    `first` on, or HALF channels of a head from `other` on with their partners, as `project_heads` arranges them.
    """
    if HALF == 0:
        return tl.minimum(first + c, other)
    pair = tl.minimum(other + c % (2 * HALF) // 2, WIDTH // 2 - 1)  # the channel's half; i + H/2 is the partner of i
    return (first + c // (2 * HALF)) * WIDTH + pair + c % 2 * (WIDTH // 2)


@triton.jit
def few_weights(
    weight, first, other, HALF: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr,
    DEPTH: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Return the weights of the columns of `column_of`, for `few_product`."""
    weights = ()
    for start in tl.static_range(0, K, DEPTH):
        weights += (_weights(weight, first, other, HALF, WIDTH, start, COLUMNS, K, DEPTH, SPLITS),)  # type: ignore[assignment]
    return weights


@triton.jit
def few_channels(parameter, ROWS: tl.constexpr, K: tl.constexpr, DEPTH: tl.constexpr):
    """Return a parameter (K,) for `few_product`, as tiles (ROWS,DEPTH) of equal rows; nothing for None.

    Threads read them as they read rows: with one row the channels would move, and so be waited for.
    """
    channels = ()
    if parameter is not None:
        for start in tl.static_range(0, K, DEPTH):
            k = start + tl.arange(0, DEPTH)[None, :] + tl.zeros([ROWS, 1], tl.int32)
            channels += (tl.load(parameter + k, mask=k < K, other=0.0),)  # type: ignore[assignment]
    return channels


@triton.jit
def few_product(
    x, weights, gains, shifts, eps, row, rows,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, DEPTH: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Return Σ LN(x)[row, k] · weight[column, k], or without gains that of x itself, in float32.

    The weights are those of `few_weights`, gains and shifts those of `few_channels`. SPLITS warps share every DEPTH
    inputs. Rows from `rows` on are not read.
    """
    tiles = ()
    for start in tl.static_range(0, K, DEPTH):
        k = start + tl.arange(0, DEPTH)
        at, mask = row[:, None] * K + k[None, :], (row < rows)[:, None] & (k < K)[None, :]
        tiles += (tl.load(x + at, mask=mask, other=0.0),)  # type: ignore[assignment]
    if len(gains) > 0:
        tiles = _normed(tiles, gains, shifts, eps, ROWS, K, DEPTH)
    accumulator = tl.zeros([SPLITS, COLUMNS, ROWS], tl.float32)
    for i in tl.static_range((K + DEPTH - 1) // DEPTH):
        w = _shares_of_weights(weights[i], COLUMNS, SPLITS)
        a = tl.permute(_shares(tiles[i].to(w.dtype), SPLITS), (0, 2, 1))
        accumulator = tl.dot(w, a, accumulator)
    return tl.trans(tl.sum(accumulator, axis=0))


@triton.jit
def _normed(tiles, gains, shifts, eps, ROWS: tl.constexpr, K: tl.constexpr, DEPTH: tl.constexpr):
    """Return the LayerNorm of rows that are cut into tiles (ROWS,DEPTH), in float32."""
    total, squares = tl.zeros([ROWS, DEPTH], tl.float32), tl.zeros([ROWS, DEPTH], tl.float32)
    for i in tl.static_range(len(tiles)):
        total += tiles[i].to(tl.float32)
    mean = tl.sum(total, axis=1)[:, None] / K
    centred = ()
    for i in tl.static_range(len(tiles)):
        inside = i * DEPTH + tl.arange(0, DEPTH) < K
        centred += (tl.where(inside[None, :], tiles[i].to(tl.float32) - mean, 0.0),)  # type: ignore[assignment]
        squares += centred[i] * centred[i]
    scale = 1.0 / tl.sqrt(tl.sum(squares, axis=1)[:, None] / K + eps)
    normed = ()
    for i in tl.static_range(len(tiles)):
        y = centred[i] * scale * gains[i].to(tl.float32)
        if len(shifts) > 0:
            y += shifts[i].to(tl.float32)
        normed += (y,)  # type: ignore[assignment]
    return normed


@triton.jit
def _weights(
    weight, first, other, HALF: tl.constexpr, WIDTH: tl.constexpr, start, COLUMNS: tl.constexpr, K: tl.constexpr,
    DEPTH: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Return DEPTH weights of each column from input `start` on, as rows of 32 inputs.

    By turns the rows are 8 columns of each share, then the next 8 columns, then the next 32 inputs. A thread reads 8
    adjacent weights, so a warp reads 8 rows, and those of its own share.
    """
    row = tl.arange(0, COLUMNS * DEPTH // 32)
    c = row // (8 * SPLITS) % (COLUMNS // 8) * 8 + row % 8
    share, block = row // 8 % SPLITS, row // (SPLITS * COLUMNS)
    k = (start + share * (DEPTH // SPLITS) + block * 32)[:, None] + tl.arange(0, 32)[None, :]
    at = weight + column_of(c, first, other, HALF, WIDTH)[:, None] * K + k
    if K % DEPTH == 0:
        return tl.load(at)
    return tl.load(at, mask=k < K, other=0.0)


@triton.jit
def _shares_of_weights(rows, COLUMNS: tl.constexpr, SPLITS: tl.constexpr):
    """Return what `_weights` read as (SPLITS,C,inputs of a share), in an order of inputs that moves nothing.

    The tensor cores want of a thread inputs 2t, 2t + 1, 2t + 8 and 2t + 9 of every 16, where it has read 8t to 8t + 7
    of 32; a product may take its inputs in any order.
    """
    BLOCKS: tl.constexpr = rows.shape[0] // (SPLITS * COLUMNS)
    parts = tl.reshape(rows, [BLOCKS, COLUMNS // 8, SPLITS, 8, 4, 4, 2])
    return tl.reshape(tl.permute(parts, (2, 1, 3, 0, 5, 4, 6)), [SPLITS, COLUMNS, BLOCKS * 32])


@triton.jit
def _shares(tile, SPLITS: tl.constexpr):
    """Return a tile (ROWS,DEPTH) as (SPLITS,ROWS,inputs of a share), in the order of `_shares_of_weights`."""
    ROWS: tl.constexpr = tile.shape[0]
    SHARE: tl.constexpr = tile.shape[1] // SPLITS
    parts = tl.reshape(tile, [ROWS, SPLITS, SHARE // 32, 4, 4, 2])
    return tl.reshape(tl.permute(parts, (1, 0, 2, 4, 3, 5)), [SPLITS, ROWS, SHARE])
