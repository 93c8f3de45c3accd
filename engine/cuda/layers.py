"""The attenuated block on a device, for prefill and decode alike (SPEC.md, "Attenuated block").

Letters: M rows that there may be, D model width, N heads, H head width.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from thoughtbubbles.engine.cache.pages import SegmentPages
from thoughtbubbles.engine.cuda.kernels.attention import Parts, paged_attention
from thoughtbubbles.engine.cuda.kernels.linear import gelu_linear, normalise, project_heads, residual_linear
from thoughtbubbles.engine.cuda.kernels.rows import Rows
from thoughtbubbles.engine.cuda.kernels.tiles import MOST_PARTS, MOST_ROWS_OF_PARTS
from thoughtbubbles.model import ModelConfig, Thoughtbubbles

MOST_STREAMS = 32
"""The most streams of a token that the kernels support: one program handles all its candidates."""


def has_kernels(config: ModelConfig) -> bool:
    """Return whether the kernels support models of this kind; `CachedForward` supports all."""
    return config.copies == 1 and 1 << len(config.fork_layers) <= MOST_STREAMS and not config.ablated


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
    """float32, partial sums of products whose inputs several programs share."""

    @classmethod
    def zeros(
        cls, config: ModelConfig, like: Tensor, *, batch_size: int, rows: int, usual: int, splits: int = 1
    ) -> Self:
        """Return memory for `rows` rows in the dtype of `like`.

        `usual` is the usual number of rows in the segment that has the fewest. `splits` programs share the keys of each
        batch slot.
        """
        sums = MOST_PARTS * rows * config.n_embd if usual <= MOST_ROWS_OF_PARTS else 0
        return cls(
            like.new_zeros((rows, config.n_embd)),
            like.new_zeros((rows, config.n_head, config.head_width)),
            like.new_zeros((rows, config.n_embd)),
            like.new_zeros((rows, 4 * config.n_embd)),
            Parts.empty(batch_size, rows, config.n_head, config.head_width, splits, like.device),
            torch.empty(sums, device=like.device),
        )

    def of(self, rows: int) -> Self:
        """Return the same for fewer rows."""
        return replace(self, normed=self.normed[:rows], queries=self.queries[:rows], attended=self.attended[:rows],
                       hidden=self.hidden[:rows])  # fmt: skip


def run_layers(
    model: Thoughtbubbles, pages: SegmentPages, x: Tensor, rows: Rows, scratch: Scratch, *, normed: bool = False
) -> None:
    """Run the layers of a segment on x (M,D) in place, and write the keys and values of its live rows to the cache.

    `normed`: `scratch.normed` already has LN_1 of x.
    """
    update = None
    for at, layer in enumerate(pages.segment.layers):
        block, keys, values = model.blocks[layer], pages.keys[at], pages.values[at]
        if at or not normed:
            normalise(x=x, norm=block.ln_1, out=scratch.normed, rows=rows, update=update)
        project_heads(x=scratch.normed, layer=block.attn.c_attn, queries=scratch.queries, keys=keys, values=values,
                      rows=rows, scored=block.attn.scored)  # fmt: skip
        paged_attention(queries=scratch.queries, keys=keys, values=values, span=rows, out=scratch.attended,
                        parts=scratch.parts, most=rows.most)  # fmt: skip
        update = residual_linear(x=scratch.attended, layer=block.attn.c_proj, residual=x, rows=rows,
                                 scratch=scratch.sums)  # fmt: skip
        normalise(x=x, norm=block.ln_2, out=scratch.normed, rows=rows, update=update)
        gelu_linear(x=scratch.normed, layer=block.mlp.c_fc, out=scratch.hidden, rows=rows,
                    tanh=block.mlp.approximate == "tanh")  # fmt: skip
        update = residual_linear(x=scratch.hidden, layer=block.mlp.c_proj, residual=x, rows=rows, scratch=scratch.sums)
    if update:
        normalise(x=x, norm=None, out=scratch.normed, rows=rows, update=update)
