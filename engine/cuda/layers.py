"""The attenuated block on a device, for prefill and decode alike (SPEC.md, "Attenuated block").

Letters: M streams that there may be, D model width, N heads, H head width.
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
"""The most streams that a token may have for these kernels: its candidates are one program's."""


def has_kernels(config: ModelConfig) -> bool:
    """Whether the kernels compute what a model of this kind does; what they do not, `CachedForward` does anywhere."""
    return config.copies == 1 and 1 << len(config.fork_layers) <= MOST_STREAMS and not config.ablated


@dataclass(frozen=True)
class Scratch:
    """What a layer writes, for the next to write over.

    Rows beyond the live ones mean nothing, but are finite: products are computed with them, and then not written.
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
    """float32, of products whose inputs are shared out."""

    @classmethod
    def zeros(cls, config: ModelConfig, like: Tensor, *, places: int, rows: int, usual: int, splits: int = 1) -> Self:
        """For so many places and rows, of which `usual` are to be expected in the segment that has the fewest.

        In the type of `like`; so many programs, `splits`, share out the keys of each place.
        """
        sums = MOST_PARTS * rows * config.n_embd if usual <= MOST_ROWS_OF_PARTS else 0
        return cls(
            like.new_zeros((rows, config.n_embd)),
            like.new_zeros((rows, config.n_head, config.head_width)),
            like.new_zeros((rows, config.n_embd)),
            like.new_zeros((rows, 4 * config.n_embd)),
            Parts.empty(places, rows, config.n_head, config.head_width, splits, like.device),
            torch.empty(sums, device=like.device),
        )

    def of(self, rows: int) -> Self:
        """The same for fewer rows."""
        return replace(self, normed=self.normed[:rows], queries=self.queries[:rows], attended=self.attended[:rows],
                       hidden=self.hidden[:rows])  # fmt: skip


def run_layers(
    model: Thoughtbubbles, pages: SegmentPages, x: Tensor, rows: Rows, scratch: Scratch, *, normed: bool = False
) -> None:
    """The layers of a segment, in place on x (M,D); the cache then holds the keys and values of the live rows.

    `normed` where `scratch.normed` has LN_1 of x already.
    """
    owed = None
    for at, layer in enumerate(pages.segment.layers):
        block, keys, values = model.blocks[layer], pages.keys[at], pages.values[at]
        if at or not normed:
            normalise(x, block.ln_1, scratch.normed, rows, owed)
        project_heads(scratch.normed, block.attn.c_attn, scratch.queries, keys, values, rows, scored=block.attn.scored)
        paged_attention(scratch.queries, keys, values, rows, scratch.attended, scratch.parts, most=rows.most)
        owed = residual_linear(scratch.attended, block.attn.c_proj, x, rows, scratch.sums)
        normalise(x, block.ln_2, scratch.normed, rows, owed)
        gelu_linear(scratch.normed, block.mlp.c_fc, scratch.hidden, rows, tanh=block.mlp.approximate == "tanh")
        owed = residual_linear(scratch.hidden, block.mlp.c_proj, x, rows, scratch.sums)
    if owed:
        normalise(x, None, scratch.normed, rows, owed)
