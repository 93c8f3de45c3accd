"""The CUDA executor: Triton kernels in captured graphs. Requests decode one step ahead of the host.

A decode step is launched before the tokens of the last one are known to the host: they are on the device, which draws
them and needs them next. The host meanwhile reports the step before. Prompts are waited for in the same step, while the
device computes what runs ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress

import numpy as np
import torch

from thoughtbubbles.engine.batch import Output, Plan
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cuda.decode import decodes_alone
from thoughtbubbles.engine.cuda.decode_batch import DeviceBatch, Flight
from thoughtbubbles.engine.cuda.forward import BATCH_SIZE, DEVICE_GUESSING, DeviceForward, Prefill
from thoughtbubbles.engine.cuda.layers import has_kernels
from thoughtbubbles.engine.cuda.sampler import DeviceSampler
from thoughtbubbles.engine.lookup import Guessing
from thoughtbubbles.engine.portable.executor import Batch, PortableExecutor
from thoughtbubbles.engine.portable.forward import CachedForward, Chunk, Extended, ForkTally
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.sampler import Drawn, Sampler
from thoughtbubbles.model import Thoughtbubbles

PART_TOKENS = 2048
"""Most tokens of the first part of a prefill: the device takes longer for each token of a smaller part."""


@dataclass(frozen=True)
class PrefillFlight:
    """Prompt tokens that were launched."""

    batch: Batch
    prefill: Prefill


class CudaExecutor:
    """Computes requests whose streams are in the fork-state cache with kernels, and draws tokens on the device."""

    runs_ahead = True
    mixes = True
    part_tokens = PART_TOKENS

    def __init__(
        self, forward: DeviceForward, decode: DeviceBatch, cache: ForkCache, sampler: DeviceSampler, *, host: Sampler
    ) -> None:
        """`forward` prefills, `decode` decodes; both over the same cache, and `sampler` draws for both.

        `host` draws for requests with a grammar.
        """
        self.name = "cuda (float8 cache)" if cache.eight_bits else "cuda"
        self.forward = forward
        self.decode = decode
        self.sampler = sampler
        self.ahead: Flight | None = None
        """The decode step that was launched last, and lands after the next launch."""
        self._cache = cache
        self._host = host

    @property
    def max_prefill_tokens(self) -> int:
        """As `Executor.max_prefill_tokens`."""
        return self.forward.max_prefill_tokens

    @property
    def max_lone_prefill_tokens(self) -> int:
        """As `Executor.max_lone_prefill_tokens`."""
        return self.forward.max_lone_prefill_tokens

    @property
    def guessing(self) -> Guessing:
        """As `Executor.guessing`."""
        return self.forward.guessing

    @property
    def tally(self) -> ForkTally:
        """As `Executor.tally`."""
        return self.forward.tally

    def prepare(self) -> None:
        """As `Executor.prepare`."""
        self.forward.prepare()

    def read_weights(self) -> None:
        """As `Executor.read_weights`. The graphs read the model's own tensors, by their addresses."""
        self.forward.read_weights()

    @torch.inference_mode()
    def launch(self, plan: Plan) -> list[PrefillFlight | Flight]:
        """As `Executor.launch`. Prefill goes first: it is waited for, and what runs ahead keeps the device busy.

        A request with a grammar never runs ahead: which tokens may come next follows from the one before. Its newest
        token is computed as one more of its prompt would be, and so are the newest token and the guesses of one with a
        draft.
        """
        if not plan.continues:
            self.forward.forget()
        flights: list[PrefillFlight | Flight] = [self.ahead] if self.ahead else []
        planned = [each for each in plan.decodes if each[1]]
        decodes = [request for request, _ in planned if request.grammar is None and not request.draft]
        waited = [*plan.prefills]
        if len(decodes) < len(planned):
            waited += [each for each in planned if each[0].grammar is not None or each[0].draft]
        if waited:
            requests = [request for request, _ in waited]
            batch = Batch.of(requests, [tokens for _, tokens in waited])
            prefill = self.forward.launch(self._with_lanes(batch, requests), partial(self._assign, requests))
            flights.append(PrefillFlight(batch, prefill))
        self.ahead = self.decode.launch(decodes) if decodes else None
        return flights

    def release(self, requests: Sequence[Request]) -> None:
        """As `Executor.release`: what lands of them is dropped, since they have lost their lanes."""

    def _with_lanes(self, batch: Batch, requests: list[Request]) -> list[Chunk]:
        """Return the batch's chunks with the lanes of drafts, for which the sampler draws from now on.

        A request with a draft moves on without its own lane, whose part of a decode step is uploaded again afterwards.
        """
        drafted = [request for request in requests if request.draft]
        if not drafted:
            return batch.chunks
        lagging = [chunk.state.row for chunk in batch.chunks if chunk.guesses]
        self.decode.forget(lagging)
        lanes = iter(self.sampler.assign_drafts(lagging, drafted))
        return [chunk._replace(lanes=next(lanes)) if chunk.guesses else chunk for chunk in batch.chunks]

    def _assign(self, requests: Sequence[Request]) -> bool:
        """Have the sampler draw for those of these requests that have no draft. Return whether the draw is plain."""
        own = [request for request in requests if not request.draft]
        self.sampler.assign(np.array([request.state.row for request in own if request.state], np.int64), own)
        return all(request.draws_alone for request in requests)

    def land(self, flight: PrefillFlight | Flight) -> Output:
        """As `Executor.land`."""
        return self._land_prefill(flight) if isinstance(flight, PrefillFlight) else self._land_decode(flight)

    @torch.inference_mode()
    def _land_prefill(self, flight: PrefillFlight) -> Output:
        extended, batch = flight.prefill.land(), flight.batch
        draw = partial(self._drawn, flight, extended)
        return batch.output(self.forward, extended, draw, vocabulary=self.sampler.vocabulary,
                            scored=flight.prefill.scores())  # fmt: skip

    def _drawn(self, flight: PrefillFlight, extended: Extended) -> Drawn:
        """Wait for the tokens that the device draws, and draw for requests with a grammar."""
        requests, chunks = flight.batch.requests, flight.batch.chunks
        tokens, logprobs = flight.prefill.drawn()
        drawn = Drawn.of(tokens, [chunk.draws for chunk in chunks for _ in range(chunk.num_draws)], logprobs)
        if masked := [i for i, one in enumerate(requests) if one.grammar is not None]:
            drawn.fill(masked, self._host.draw([requests[i] for i in masked], extended.logits[masked]))
        return drawn

    def _land_decode(self, flight: Flight) -> Output:
        """Wait for a decode step, and record its tokens in the cache, but for requests that have lost their lane."""
        tokens, ends, logprobs = self.decode.land(flight)
        requests, lanes = flight.requests, flight.lanes
        present = self._cache.ledger.generation[lanes] == flight.generations
        if not present.all():
            requests, logprobs = list(compress(requests, present)), logprobs and list(compress(logprobs, present))
            lanes, tokens, ends = lanes[present], tokens[present], ends[present]
        counts = self._cache.append(lanes, [request.output[-1] for request in requests], ends).tolist()
        # One that has a token to come draws it; one that reports forks may only need the streams of its last token.
        drawn = Drawn.of(tokens.tolist(), [not one.reports_forks or one.draws for one in requests], logprobs)
        if not all(drawn.finite):
            self.forward.clear_gathered()
        return Output(
            requests=requests,
            step_fork_counts=counts,
            fork_counts=counts,
            stream_tokens=counts,
            num_streams=ends[:, -1].tolist(),
            finite=drawn.finite,
            tokens=drawn.tokens,
            logprobs=drawn.logprobs,
            prompt_reports=[None] * len(requests),
            fork_scores=[()] * len(requests),
        )


def make_cuda_executor(
    model: Thoughtbubbles, cache: ForkCache, sampler: Sampler, *, guesses: int = 0
) -> CudaExecutor | PortableExecutor:
    """Return an executor that computes a model of this kind with as many kernels as serve it.

    `sampler` draws on the host for models that cannot be decoded with kernels, and for requests with a grammar. A
    request has at most so many `guesses` in a step.

    Raises `ValueError` if the cache has 8 bits and no kernels decode the model, or if fewer guesses than pay are
    allowed.
    """
    tally = ForkTally()
    if cache.eight_bits and not decodes_alone(model.config):
        raise ValueError(
            "cache_dtype 'float8' needs kernels that decode, and there are none for a model with averaging 'logit',"
            " with copies, without a part of its attenuated block, or with more than 5 fork layers"
        )
    if not has_kernels(model.config):
        return PortableExecutor(CachedForward(model, cache, tally), sampler)
    if not decodes_alone(model.config):
        return PortableExecutor(DeviceForward(model, cache, tally, sampler=None, guesses=guesses), sampler)
    if 0 < guesses < DEVICE_GUESSING.least:
        raise ValueError(
            f"speculate must be 0 or at least {DEVICE_GUESSING.least} on a GPU, not {guesses}: fewer do not pay"
        )
    device_sampler = make_device_sampler(model, cache, sampler, drafted=BATCH_SIZE if guesses else 0)
    forward = DeviceForward(model, cache, tally, sampler=device_sampler, guesses=guesses)
    decode = DeviceBatch(model, cache, tally, device_sampler)
    return CudaExecutor(forward, decode, cache, device_sampler, host=sampler)


def make_device_sampler(
    model: Thoughtbubbles, cache: ForkCache, sampler: Sampler, *, drafted: int = 0
) -> DeviceSampler:
    """Return a sampler for every lane of the cache's ledger and the batch slots of any step.

    At most `drafted` tokens of a step belong to requests with drafts.
    """
    weight, lanes = model.transformer.wte.weight, cache.ledger.generation
    return DeviceSampler(
        lanes, batch_size=max(BATCH_SIZE, 1 << (len(lanes) - 1).bit_length()), vocabulary=sampler.vocabulary,
        model_vocabulary=len(weight), end_of_text=sampler.end_of_text, device=weight.device, drafted=drafted,
    )  # fmt: skip
