"""The attenuated block on a device, for prefill and decode alike (SPEC.md, "Attenuated block").

Letters: M rows that there may be, D model width, N heads, H head width.
"""

from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from thoughtbubbles.engine.cache.pages import Segment
from thoughtbubbles.engine.cuda.kernels.attention import Parts, paged_attention
from thoughtbubbles.engine.cuda.kernels.eight_bit_attention import eight_bit_attention
from thoughtbubbles.engine.cuda.kernels.linear import Recent, gelu_linear, normalise, project_heads, residual_linear
from thoughtbubbles.engine.cuda.kernels.packed_attention import packed_attention
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.engine.cuda.kernels.tiles import LIBRARY_ROWS, MOST_PARTS, MOST_ROWS_OF_PARTS, few
from thoughtbubbles.model import ModelConfig, Thoughtbubbles

MOST_STREAMS = 32
"""The most streams of a token that the kernels support: one program handles all its candidates."""


def has_kernels(config: ModelConfig) -> bool:
    """Return whether the kernels support models of this kind; `CachedForward` supports all."""
    return config.copies == 1 and 1 << len(config.fork_layers) <= MOST_STREAMS and not config.ablated


class Stored(Protocol):
    """Where the keys and values of a segment are: `SegmentPages`, or `Buffers`."""

    @property
    def segment(self) -> Segment:
        """The layers that have them."""

    @property
    def keys(self) -> Tensor:
        """(layers,N,slots,H)."""

    @property
    def values(self) -> Tensor:
        """(layers,N,slots,H)."""

    @property
    def cumulative(self) -> Tensor | None:
        """As in `SegmentPages`."""


@dataclass(frozen=True)
class Scratch:
    """Memory that each layer overwrites.

    Rows beyond the live ones have no meaning, but are finite: products read them, and their results are not written.
    """

    normed: Tensor
    """(M,D)."""
    queries: Tensor
    """(M,N,H)."""
    attended: Tensor
    """(M,D)."""
    hidden: Tensor
    """(M,4D)."""
    parts: Parts
    sums: Tensor
    """float32, sums of products that are added to the streams later."""
    recent: Recent | None = None
    """Where prompts are prefilled."""

    @classmethod
    def zeros(
        cls, config: ModelConfig, like: Tensor, *, batch_size: int, rows: int, sums: int, splits: int = 1,
        packed: bool = False,
    ) -> Self:  # fmt: skip
        """Return memory for `rows` rows in the dtype of `like`, and `sums` partial sums.

        `splits` programs share the keys of each batch slot. `packed`: slots may have many new streams.
        """
        heads = (rows, config.n_head, config.head_width)
        return cls(
            like.new_zeros((rows, config.n_embd)),
            like.new_zeros(heads),
            like.new_zeros((rows, config.n_embd)),
            like.new_zeros((rows, 4 * config.n_embd)),
            Parts.empty(batch_size, rows, config.n_head, config.head_width, splits, like.device),
            torch.empty(sums, device=like.device),
            Recent(like.new_zeros(heads), like.new_zeros(heads)) if packed else None,
        )

    def of(self, rows: int) -> Self:
        """Return the same for fewer rows."""
        return replace(self, normed=self.normed[:rows], queries=self.queries[:rows], attended=self.attended[:rows],
                       hidden=self.hidden[:rows])  # fmt: skip


def num_sums(rows: int, usual: int, width: int) -> int:
    """Return how many partial sums products of `rows` rows may have, where `usual` rows are usual."""
    if usual <= MOST_ROWS_OF_PARTS:
        return MOST_PARTS * rows * width
    return rows * width if usual >= LIBRARY_ROWS else 0


def run_layers(
    model: Thoughtbubbles, pages: Stored, x: Tensor, rows: Rows, scratch: Scratch, *, normed: bool = False
) -> None:
    """Run the layers of a segment on x (M,D) in place, and write the keys and values of its live rows to the cache.

    `normed`: `scratch.normed` already has LN_1 of x.
    """
    folds = few(x, rows.usual)
    source, update = (x if folds else scratch.normed), None
    for at, layer in enumerate(pages.segment.layers):
        block, keys, values, c = model.blocks[layer], pages.keys[at], pages.values[at], pages.cumulative
        if not folds and (at or not normed):
            normalise(x=x, norm=block.ln_1, out=scratch.normed, rows=rows, update=update)
        project_heads(x=source, layer=block.attn.c_attn, queries=scratch.queries, keys=keys, values=values,
                      rows=rows, scored=block.attn.scored, first=at == 0, recent=scratch.recent, cumulative=c,
                      norm=block.ln_1 if folds else None)  # fmt: skip
        if scratch.recent:
            packed_attention(queries=scratch.queries, recent=scratch.recent, keys=keys, values=values, span=rows,
                             out=scratch.attended, most=rows.most, cumulative=c)  # fmt: skip
        elif c is None:
            paged_attention(queries=scratch.queries, keys=keys, values=values, span=rows, out=scratch.attended,
                            parts=scratch.parts, most=rows.most)  # fmt: skip
        else:
            eight_bit_attention(queries=scratch.queries, keys=keys, values=values, cumulative=c, span=rows,
                                out=scratch.attended, parts=scratch.parts, most=rows.most)  # fmt: skip
        update = residual_linear(x=scratch.attended, layer=block.attn.c_proj, residual=x, rows=rows,
                                 scratch=scratch.sums)  # fmt: skip
        if not folds:
            normalise(x=x, norm=block.ln_2, out=scratch.normed, rows=rows, update=update)
        gelu_linear(x=source, layer=block.mlp.c_fc, out=scratch.hidden, rows=rows,
                    tanh=block.mlp.approximate == "tanh", norm=block.ln_2 if folds else None)  # fmt: skip
        update = residual_linear(x=scratch.hidden, layer=block.mlp.c_proj, residual=x, rows=rows, scratch=scratch.sums)
    if update:
        normalise(x=x, norm=None, out=scratch.normed, rows=rows, update=update)
