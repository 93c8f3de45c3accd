"""The attenuated block on a device, for prefill and decode alike (SPEC.md, "Attenuated block").

Letters: M streams that there may be, D model width, N heads, H head width.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from engine.kernels.attention import Parts, paged_attention
from engine.kernels.linear import gelu_linear, normalise, project_heads, residual_linear
from engine.kernels.rows import Rows
from engine.pages import SegmentPages
from model import ModelConfig, Thoughtbubbles

MOST_STREAMS = 32
"""The most streams that a token may have for these kernels: its candidates are one program's."""


def has_kernels(config: ModelConfig) -> bool:
    """Whether the kernels compute what a model of this kind does; what they do not, `CachedForward` does anywhere."""
    return config.copies == 1 and 1 << len(config.fork_layers) <= MOST_STREAMS and not config.ablated


@dataclass(frozen=True)
class Scratch:
    """What a layer writes, for the next to write over."""

    normed: Tensor
    """(M,D)."""
    queries: Tensor
    """(M,N,H)."""
    attended: Tensor
    """(M,D)."""
    hidden: Tensor
    """(M,4D)."""
    parts: Parts

    @classmethod
    def empty(cls, config: ModelConfig, like: Tensor, places: int, rows: int, splits: int = 1) -> Self:
        """For so many places and rows, in the type of `like`; `splits` programs share out the keys of each."""
        return cls(
            like.new_empty((rows, config.n_embd)),
            like.new_empty((rows, config.n_head, config.head_width)),
            like.new_empty((rows, config.n_embd)),
            like.new_empty((rows, 4 * config.n_embd)),
            Parts.empty(places, rows, config.n_head, config.head_width, splits, like.device),
        )

    def of(self, rows: int) -> Self:
        """The same for fewer rows."""
        return type(self)(self.normed[:rows], self.queries[:rows], self.attended[:rows], self.hidden[:rows], self.parts)


def run_layers(model: Thoughtbubbles, pages: SegmentPages, x: Tensor, rows: Rows, scratch: Scratch) -> None:
    """The layers of a segment, in place on x (M,D); the cache then holds the keys and values of the live rows."""
    for at, layer in enumerate(pages.segment.layers):
        block, keys, values = model.blocks[layer], pages.keys[at], pages.values[at]
        normalise(x, block.ln_1, scratch.normed, rows.live)
        project_heads(scratch.normed, block.attn.c_attn, scratch.queries, keys, values, rows.slot, rows.score,
                      (rows.cos, rows.sin), rows.live, scored=block.attn.scored)  # fmt: skip
        paged_attention(scratch.queries, keys, values, rows, scratch.attended, scratch.parts, most=rows.most)
        residual_linear(scratch.attended, block.attn.c_proj, x, rows.score, rows.live)
        normalise(x, block.ln_2, scratch.normed, rows.live)
        gelu_linear(scratch.normed, block.mlp.c_fc, scratch.hidden, rows.live, tanh=block.mlp.approximate == "tanh")
        residual_linear(scratch.hidden, block.mlp.c_proj, x, rows.score, rows.live)
