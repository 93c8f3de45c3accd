"""The native executor: a step is one call of a C++ library, landed as it is launched."""

from typing import Self

import torch

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.config import WeightKind
from thoughtbubbles.engine.native.forward import Extended, NativeForward
from thoughtbubbles.engine.native.loading import NativeUnavailableError, load_native
from thoughtbubbles.engine.portable.executor import Batch, LandedExecutor
from thoughtbubbles.engine.portable.forward import ForkTally
from thoughtbubbles.engine.sampler import Drawn, Sampler
from thoughtbubbles.model import Thoughtbubbles


class NativeExecutor(LandedExecutor[Extended]):
    """Computes requests whose streams are in the fork-state cache, on a CPU in float32."""

    mixes = True  # weights are read once for all rows, and what decodes does not wait for a prompt

    def __init__(self, forward: NativeForward, sampler: Sampler) -> None:
        super().__init__(forward, sampler)
        self.name = f"native ({forward.level}{', int8' if forward.weights == 'int8' else ''})"

    @classmethod
    def make(cls, model: Thoughtbubbles, cache: ForkCache, sampler: Sampler, weights: WeightKind = "exact") -> Self:
        """Return an executor of a model. Raises `NativeUnavailableError` where it cannot compute that."""
        weight = model.transformer.wte.weight
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            dtype = str(weight.dtype).removeprefix("torch.")
            raise NativeUnavailableError(f"it computes in float32 on a CPU, not in {dtype} on {weight.device}")
        forward = NativeForward(
            model, cache, ForkTally(), vocabulary=sampler.vocabulary, native=load_native(), weights=weights
        )
        return cls(forward, sampler)

    def draw(self, batch: Batch, extended: Extended) -> Drawn:
        """Take the library's draws, and draw on the host for requests that set more than a temperature."""
        requests = batch.requests
        drawn = Drawn.of(requests, extended.drawn)
        others = [i for i, token in enumerate(drawn.tokens) if token is not None and not requests[i].draws_alone]
        if others:
            guessed = [batch.guessed[i] for i in others]
            drawn.fill(others, self.sampler.draw([requests[i] for i in others], extended.logits[others], guessed))
        return drawn
