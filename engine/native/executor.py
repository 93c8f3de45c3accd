"""The native executor: a step is two calls of a C++ library, for logits and for draws, landed as it is launched."""

from typing import Self

import torch

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.config import WeightKind
from thoughtbubbles.engine.native.forward import Extended, NativeForward
from thoughtbubbles.engine.native.loading import NativeUnavailableError, load_native
from thoughtbubbles.engine.native.sampler import NativeSampler
from thoughtbubbles.engine.portable.executor import Batch, LandedExecutor
from thoughtbubbles.engine.portable.forward import ForkTally
from thoughtbubbles.engine.sampler import Drawn, Sampler
from thoughtbubbles.model import Thoughtbubbles


class NativeExecutor(LandedExecutor[Extended]):
    """Computes requests whose streams are in the fork-state cache, on a CPU in float32."""

    mixes = True  # weights are read once for all rows, and what decodes does not wait for a prompt

    def __init__(self, forward: NativeForward, sampler: Sampler) -> None:
        super().__init__(forward, sampler)
        self._native_sampler = NativeSampler(forward, forward.cache.ledger, sampler)
        self.name = f"native ({forward.level}{', int8' if forward.weights == 'int8' else ''})"

    @classmethod
    def make(cls, model: Thoughtbubbles, cache: ForkCache, sampler: Sampler, weights: WeightKind = "exact") -> Self:
        """Return an executor of a model. Raises `NativeUnavailableError` where it cannot compute that."""
        weight = model.transformer.wte.weight
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            dtype = str(weight.dtype).removeprefix("torch.")
            raise NativeUnavailableError(f"it computes in float32 on a CPU, not in {dtype} on {weight.device}")
        return cls(NativeForward(model, cache, ForkTally(), native=load_native(), weights=weights), sampler)

    def draw(self, batch: Batch, extended: Extended) -> Drawn:
        """Draw every token in the library, but for those that it leaves to the host."""
        return self._native_sampler.draw(batch.requests, extended.logits, batch.guessed)
