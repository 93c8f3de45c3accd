"""The native executor: a step is one call of a C++ library, landed as it is launched."""

import logging
from typing import Self

import torch

from thoughtbubbles.engine.batch import Landed, Output, Plan
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.native.forward import Extended, NativeForward
from thoughtbubbles.engine.native.library import BROKEN
from thoughtbubbles.engine.native.loading import NativeUnavailableError, load_native
from thoughtbubbles.engine.portable.executor import Batch
from thoughtbubbles.engine.portable.forward import ForkTally
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.sampler import Drawn, Sampler
from thoughtbubbles.model import Thoughtbubbles

logger = logging.getLogger(__name__)


class NativeExecutor:
    """Computes requests whose streams are in the fork-state cache, on a CPU in float32."""

    runs_ahead = False

    def __init__(self, forward: NativeForward, sampler: Sampler) -> None:
        self.forward = forward
        self._sampler = sampler

    @classmethod
    def make(cls, model: Thoughtbubbles, cache: ForkCache, sampler: Sampler) -> Self:
        """Return an executor of a model. Raises `NativeUnavailableError` where it cannot compute that."""
        weight = model.transformer.wte.weight
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            dtype = str(weight.dtype).removeprefix("torch.")
            raise NativeUnavailableError(f"it computes in float32 on a CPU, not in {dtype} on {weight.device}")
        native = load_native()
        return cls(NativeForward(model, cache, ForkTally(), vocabulary=sampler.vocabulary, native=native), sampler)

    @property
    def name(self) -> str:
        """As `Executor.name`."""
        return f"native ({self.forward.level})"

    @property
    def max_prefill_tokens(self) -> int:
        """As `Executor.max_prefill_tokens`."""
        return self.forward.max_prefill_tokens

    @property
    def tally(self) -> ForkTally:
        """As `Executor.tally`."""
        return self.forward.tally

    def prepare(self) -> None:
        """As `Executor.prepare`: nothing is compiled as it is first met."""

    @torch.inference_mode()
    def launch(self, plan: Plan) -> list[Landed]:
        """Compute the plan, and return its one flight."""
        if not plan.requests:
            return []
        batch = Batch.of(plan.requests, plan.num_tokens)
        extended = self.forward.extend(batch.chunks)
        drawn = self._draw(plan.requests, extended)
        return [Landed(batch.output(self.forward, extended, drawn, vocabulary=self._sampler.vocabulary))]

    def land(self, flight: Landed) -> Output:
        """As `Executor.land`."""
        return flight.output

    def _draw(self, requests: list[Request], extended: Extended) -> Drawn:
        """The library's draws, and the sampler's for requests that ask for more than a temperature."""
        finite = [token != BROKEN for token in extended.drawn]
        drawing = [
            whole and request.is_computed and request.draws for whole, request in zip(finite, requests, strict=True)
        ]
        tokens = [token if draws else None for token, draws in zip(extended.drawn, drawing, strict=True)]
        drawn = Drawn(finite, tokens, [None] * len(requests))
        others = [i for i, request in enumerate(requests) if drawing[i] and not request.draws_alone]
        if others:
            drawn.fill(others, self._sampler.draw([requests[i] for i in others], extended.logits[others]))
        return drawn
