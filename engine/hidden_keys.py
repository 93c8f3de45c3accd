"""Which keys a request's new streams may not look at: those of the new streams to their right.

Letters: M new streams, K keys, of which the last M are the new streams' own.
"""

import torch
from torch import Tensor

KEPT = 8
"""New streams up to which masks are kept: a decode step has few."""


class HiddenKeys:
    """Masks on one device and in one type. The mask for fewer keys is the right end of that for more."""

    def __init__(self, like: Tensor) -> None:
        """For caches like this one. On a CPU attention computes in float32: with bfloat16 torch's is slower there."""
        self.dtype = torch.float32 if like.device.type == "cpu" else like.dtype
        """What attention computes in."""
        self._device = like.device
        self._widest: dict[int, Tensor] = {}

    def of(self, new: int, keys: int) -> Tensor | None:
        """(M,K) what is added to each new stream's score of each key, 0 or -inf; None where it sees all."""
        if new == 1:
            return None
        if new > KEPT:
            return self._make(new, keys)
        widest = self._widest.get(new)
        if widest is None or widest.shape[1] < keys:
            widest = self._widest[new] = self._make(new, 2 * keys)
        return widest.narrow(1, widest.shape[1] - keys, keys)

    def _make(self, new: int, keys: int) -> Tensor:
        return torch.full((new, keys), -torch.inf, dtype=self.dtype, device=self._device).triu_(keys - new + 1)
