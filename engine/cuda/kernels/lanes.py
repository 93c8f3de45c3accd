"""What the device keeps of each running request between two steps.

Letters: L lanes, one a request that runs; G segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thoughtbubbles.engine.transfer import to_device


@dataclass(frozen=True)
class Lanes:
    """The state of every lane; a step reads it and moves it on by one token."""

    memory: Tensor
    """int32, all that follows, for the host to write to in one go."""
    seed: Tensor
    """(L,) int64."""
    drawn: Tensor
    """(L,) int64, tokens drawn so far."""
    token: Tensor
    """(L,) int32, the newest token, which the next step computes."""
    tokens: Tensor
    """(L,) int32, tokens that the cache holds."""
    kappa: Tensor
    """(L,) int32, κ of its budget."""
    temperature: Tensor
    """(L,) float32; 0 is greedy."""
    streams: list[Tensor]
    """(L,) int32 for each segment: live streams that the cache holds."""
    tables: list[Tensor]
    """(L,pages) int32 for each segment: its pages, in stream order."""

    @classmethod
    def empty(cls, lanes: int, pages: Sequence[int], device: torch.device) -> Self:
        """Lanes with room for so many pages in each segment."""
        widths = [2, 2, 1, 1, 1, 1, *[1] * len(pages), *pages]
        memory = torch.zeros(lanes * sum(widths), dtype=torch.int32, device=device)
        seed, drawn, token, tokens, kappa, temperature, *rest = memory.split([lanes * width for width in widths])
        return cls(
            memory,
            seed.view(torch.int64),
            drawn.view(torch.int64),
            token,
            tokens,
            kappa,
            temperature.view(torch.float32),
            rest[: len(pages)],
            [table.view(lanes, n) for table, n in zip(rest[len(pages) :], pages, strict=True)],
        )

    def place(self, field: Tensor, lane: int) -> int:
        """Where in `memory` what a field has of a lane begins."""
        words = field.element_size() // 4
        return int(field.storage_offset() + lane * field.stride(0)) * words

    def write(self, at: NDArray[np.int64], values: NDArray[np.int32]) -> None:
        """Write values to places of `memory`, after all that the device was asked to do before."""
        both = to_device(np.stack((at, values)), self.memory.device)
        self.memory.index_copy_(0, both[0], both[1].int())
