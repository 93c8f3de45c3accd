"""The CUDA executor: Triton kernels in captured graphs. Requests decode one step ahead of the host.

A decode step is launched before the tokens of the last one are known to the host: they are on the device, where they
are needed. The host meanwhile reports the step before. Prompts, and requests whose tokens the host draws, are waited
for in the same step, while the device computes what runs ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thoughtbubbles.engine.batch import Output, Plan
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cuda.decode import decodes_alone
from thoughtbubbles.engine.cuda.decode_batch import DeviceBatch, Flight
from thoughtbubbles.engine.cuda.forward import DeviceForward, Prefill
from thoughtbubbles.engine.cuda.layers import has_kernels
from thoughtbubbles.engine.portable.executor import Batch, PortableExecutor
from thoughtbubbles.engine.portable.forward import CachedForward, ForkTally
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.sampler import Drawn, Sampler
from thoughtbubbles.model import Thoughtbubbles


@dataclass(frozen=True)
class PrefillFlight:
    """Prompt tokens that were launched."""

    batch: Batch
    prefill: Prefill


class CudaExecutor:
    """Computes requests whose streams are in the fork-state cache with kernels, and draws tokens on the device."""

    runs_ahead = True

    def __init__(self, forward: DeviceForward, decode: DeviceBatch, cache: ForkCache, sampler: Sampler) -> None:
        """`forward` prefills, `decode` decodes; both over the same cache."""
        self.forward = forward
        self.decode = decode
        self.ahead: Flight | None = None
        """The decode step that was launched last, and lands after the next launch."""
        self._cache = cache
        self._sampler = sampler

    @property
    def max_prefill_tokens(self) -> int:
        """As `Executor.max_prefill_tokens`."""
        return self.forward.max_prefill_tokens

    @property
    def tally(self) -> ForkTally:
        """As `Executor.tally`."""
        return self.forward.tally

    def prepare(self) -> None:
        """As `Executor.prepare`."""
        self.forward.prepare()

    @torch.inference_mode()
    def launch(self, plan: Plan) -> list[PrefillFlight | Flight]:
        """As `Executor.launch`. Prefill goes first: it is waited for, and what runs ahead keeps the device busy."""
        flights: list[PrefillFlight | Flight] = [self.ahead] if self.ahead else []
        if prefills := plan.requests[: plan.num_prefills]:
            batch = Batch.of(prefills, plan.num_tokens[: plan.num_prefills])
            flights.append(PrefillFlight(batch, self.forward.launch(batch.chunks)))
        decodes = [request for request, tokens in plan.decodes if tokens]
        # Flights land in the order in which they were launched, as the tally of a decode step expects.
        if drawn_on_host := [request for request in decodes if not request.draws_alone]:
            flights.append(self.decode.launch(drawn_on_host, drawing=False))
        ahead = [request for request in decodes if request.draws_alone]
        self.ahead = self.decode.launch(ahead, drawing=True) if ahead else None
        return flights

    @torch.inference_mode()
    def land(self, flight: PrefillFlight | Flight) -> Output:
        """As `Executor.land`."""
        return self._land_prefill(flight) if isinstance(flight, PrefillFlight) else self._land_decode(flight)

    def _land_prefill(self, flight: PrefillFlight) -> Output:
        extended = flight.prefill.land()
        drawn = self._draw(flight.batch.requests, extended.logits, extended.drawn)
        return flight.batch.output(self.forward, extended, drawn, vocabulary=self._sampler.vocabulary)

    def _land_decode(self, flight: Flight) -> Output:
        """Wait for a decode step, and record its tokens in the cache, but for requests that have lost their lane."""
        tokens, ends = self.decode.land(flight)
        rows = np.flatnonzero(self._cache.ledger.opening[flight.lanes] == flight.openings)
        kept = rows.tolist()
        requests = [flight.requests[i] for i in kept]
        computed = [request.newest for request in requests]
        counts = self._cache.append(flight.lanes[rows], computed, ends[rows]).tolist()
        if flight.drawn:
            drawn = self._draw(requests, flight.logits, tokens[rows].tolist())
        else:
            drawn = self._draw(requests, flight.logits[kept], None)
        if not all(drawn.finite):
            self.forward.clear_room()
        return Output(
            requests=requests,
            fork_counts=[[count] for count in counts],
            num_streams=ends[rows, -1].tolist(),
            finite=drawn.finite,
            tokens=drawn.tokens,
            logprobs=drawn.logprobs,
            prompt_reports=[None] * len(requests),
        )

    def _draw(self, requests: Sequence[Request], logits: Tensor, tokens: Sequence[int] | None) -> Drawn:
        """Return what the device drew for each request, `tokens` (R,), or what the host draws from logits (R,V).

        The device draws by seed and temperature alone: -1 where logits are NaN or infinite. None if it drew nothing.
        """
        if tokens is None:
            return self._sampler.draw(requests, logits)
        finite = [token >= 0 for token in tokens]
        drawn = Drawn(finite, [None] * len(requests), [None] * len(requests))
        on_host: list[int] = []
        for i, request in enumerate(requests):
            if not request.draws_alone:
                on_host.append(i)
            elif finite[i] and request.is_computed and request.draws:
                drawn.tokens[i] = tokens[i]
        if on_host:
            drawn.fill(on_host, self._sampler.draw([requests[i] for i in on_host], logits[on_host]))
        return drawn


def make_cuda_executor(model: Thoughtbubbles, cache: ForkCache, sampler: Sampler) -> CudaExecutor | PortableExecutor:
    """Return an executor that computes a model of this kind with as many kernels as serve it."""
    tally = ForkTally()
    if not has_kernels(model.config):
        return PortableExecutor(CachedForward(model, cache, tally), sampler)
    forward = DeviceForward(model, cache, tally, vocabulary=sampler.vocabulary)
    if not decodes_alone(model.config):
        return PortableExecutor(forward, sampler)
    decode = DeviceBatch(model, cache, tally, vocabulary=sampler.vocabulary)
    return CudaExecutor(forward, decode, cache, sampler)
