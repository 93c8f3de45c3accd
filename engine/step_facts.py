"""What a step's chunks have in common, on a device.

Letters: R requests, T new tokens of all of them, M of one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.cached_forward import Chunk
from engine.packing import Packing
from engine.transfer import to_device
from model import budget


@dataclass(frozen=True)
class StepFacts:
    """What the chunks of one step have in common."""

    chunks: list[Chunk]
    packing: Packing
    """Of new tokens."""
    first: Tensor
    """(R,) tokens that were there before."""
    position: Tensor
    """(T,) each new token's place in its request."""
    slots: Tensor
    """(R,M) budget(t+1) - (t+1) at each new token t."""

    @classmethod
    def of(cls, chunks: list[Chunk], device: torch.device) -> "StepFacts":
        """The facts of these chunks, on a device."""
        packing = Packing.of([len(chunk.ids) for chunk in chunks], device)
        first, kappa = to_device(
            [[chunk.state.tokens for chunk in chunks], [chunk.selection.max_block_size for chunk in chunks]], device
        )
        lengths = first[:, None] + torch.arange(1, packing.present.shape[1] + 1, device=device)
        slots = budget(lengths, kappa[:, None], chunks[0].selection.block_size) - lengths
        return cls(chunks, packing, first, first[packing.request] + packing.place, slots)
