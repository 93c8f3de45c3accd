"""Decode steps on the device: the lanes of running requests, and what the host uploads before a step.

A step is launched before the tokens of the last one are known to the host. What the host has to know beforehand is how
many pages the step may need, and that follows from the budget, not from the tokens.

Letters: B batch slots, L lanes, G segments, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cache.fork_state import ForkState
from thoughtbubbles.engine.cache.layout import Indices
from thoughtbubbles.engine.cache.ledger import Numbers
from thoughtbubbles.engine.cuda.decode import DecodeStep
from thoughtbubbles.engine.cuda.lanes import Lanes
from thoughtbubbles.engine.cuda.sampler import DeviceSampler, scored
from thoughtbubbles.engine.cuda.staging import Staging
from thoughtbubbles.engine.cuda.step import prepare_steps
from thoughtbubbles.engine.portable.forward import ForkTally
from thoughtbubbles.engine.prompt_report import Scored
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.transfer import to_device, to_host
from thoughtbubbles.model import Thoughtbubbles

TOKENS_AHEAD = 31
"""Most tokens beyond the next one that pages are reserved for, so that most steps upload nothing."""
MANY_AHEAD = 127
"""The same where pages are plenty."""
PLENTY = 16
"""Pages are plenty where so many times as many are free as are reserved."""

Words = tuple[Indices, Numbers]
"""Offsets in `Lanes.memory`, and the 32-bit words to write there."""


@dataclass(frozen=True)
class Flight:
    """A decode step that was launched."""

    requests: list[Request]
    lanes: Indices
    """(B,)"""
    generations: Indices
    """(B,) of the lanes at launch: a request whose lane has another generation now was aborted or preempted since."""
    step: DecodeStep
    report: Numbers
    """What the step writes to the host (`DecodeStep.report`), valid once `landed` has happened."""
    logprobs: Tensor | None
    """The rows of `DeviceSampler.report` on the host, valid once `landed` has happened; None if no request asks."""
    landed: torch.cuda.Event | None


class DeviceBatch:
    """The lanes of running requests, and a decode step for each batch size, captured on a CUDA device."""

    def __init__(
        self,
        model: Thoughtbubbles,
        cache: ForkCache,
        tally: ForkTally,
        sampler: DeviceSampler,
    ) -> None:
        """Make a lane for each row of the cache's ledger. `sampler` draws for the lanes."""
        device = model.transformer.wte.weight.device
        lanes, columns = cache.ledger.table.shape
        segments = len(cache.segments)
        self.lanes = Lanes.zeros(device, L=lanes, G=segments, P=columns)
        self._staging = Staging(self.lanes.memory)
        sizes = [1 << i for i in range((lanes - 1).bit_length() + 1)]
        self._steps = {n: DecodeStep(model, cache, self.lanes, sampler, batch_size=n) for n in sizes}
        self._tally = tally
        self._counted = {step: np.zeros((segments, 2), np.int64) for step in self._steps.values()}
        """The part of each step's tally that is counted in `_tally`."""
        self._fork_layers = model.config.fork_layers
        self._cache = cache
        self._sampler = sampler
        self._launches = 0
        self._next_upload = 0
        """The launch before which the present batch needs no upload."""
        self._batch: list[ForkState] = []
        self._lanes = np.zeros(0, np.int64)
        """(B,) of the present batch."""
        self._plain = False
        """Whether all of the present batch have drawn by temperature and seed alone, as they will from then on."""
        self._reports = False
        """Whether one of the present batch asks for log-probabilities."""
        self._generations = np.zeros(lanes, np.int64)
        """(L,) of the states that were uploaded."""
        self._uploaded_pages = np.zeros((lanes, segments), np.int64)
        """(L,G) pages in the device's tables."""
        self._reserved_until = np.zeros(lanes, np.int64)
        """(L,) the launch before which the uploaded pages suffice, whatever streams come."""
        if device.type == "cuda":
            prepare_steps(self._steps.values(), device)
            self._staging.prepare()

    def launch(self, requests: list[Request]) -> Flight:
        """Launch the computation of each request's newest token, and the draw of the next ones.

        The scheduler has freed the pages that the step may need.
        """
        states = [request.state for request in requests]
        step = self._steps[1 << (len(requests) - 1).bit_length()]
        if states != self._batch:
            self._set_batch(requests, step)
        lanes = self._lanes
        if upload := self._launches == self._next_upload:
            self._upload(requests, lanes)
        self._plain = self._plain or all(request.draws_alone for request in requests)
        step.run(plain=self._plain)
        logprobs = to_host(self._sampler.report[: len(requests)]) if self._reports else None
        report, landed = step.report()
        if not upload and self._launches + 1 == self._next_upload:
            self._upload(requests, lanes)  # for the next launch, and now, since the device has a step to compute
        self._launches += 1
        return Flight(requests, lanes, self._generations[lanes], step, report, logprobs, landed)

    def land(self, flight: Flight) -> tuple[Numbers, Numbers, list[Scored | None] | None]:
        """Wait for a flight. Return each request's token (B,), its streams (B,G) after the step, log-probabilities."""
        if flight.landed is not None:
            flight.landed.synchronize()
        tally, report = flight.step.read(flight.report)
        for layer, (forks, deletions) in zip(
            self._fork_layers, (tally - self._counted[flight.step]).tolist()[1:], strict=True
        ):
            self._tally.forks[layer] += forks
            self._tally.deletions[layer] += deletions
        self._counted[flight.step] = tally.copy()
        report = report[:, : len(flight.requests)]
        logprobs = None
        if flight.logprobs is not None:
            logprobs = scored(flight.logprobs, [request.params.logprobs for request in flight.requests],
                              self._sampler.vocabulary)  # fmt: skip
        return report[0], report[1:].T, logprobs

    def forget(self, rows: Sequence[int]) -> None:
        """Upload what the device has of these lanes again before it decodes them: other steps compute them now."""
        self._generations[rows] = 0
        if not set(rows).isdisjoint(self._lanes.tolist()):
            self._batch = []

    def _set_batch(self, requests: list[Request], step: DecodeStep) -> None:
        """Assign the batch slots of a step to these requests."""
        states = [request.state for request in requests if request.state]
        assert len(states) == len(requests), "a request with pages runs with a state"
        rows = [state.row for state in states]
        step.lane.copy_(to_device(rows + [-1] * (step.batch_size - len(rows)), step.lane.device))
        self._batch, self._lanes, self._next_upload = states, np.array(rows, np.int64), self._launches
        self._plain, self._reports = False, any(request.params.logprobs is not None for request in requests)

    def _upload(self, requests: list[Request], lanes: Indices) -> None:
        """Reserve the pages that the next steps may need, and upload what the device lacks of these requests."""
        generations = self._cache.ledger.generation[lanes]
        new = self._generations[lanes] != generations
        short = new | (self._reserved_until[lanes] <= self._launches + TOKENS_AHEAD // 2)  # of pages, now or soon
        self._generations[lanes] = generations
        self._uploaded_pages[lanes[new]] = 0
        words: list[Words] = []
        for mask, words_of in ((new, self._requests), (short, self._pages)):
            if mask.any():
                words += words_of([requests[i] for i in mask.nonzero()[0].tolist()], lanes[mask])
        if words:
            self._staging.write(*map(np.concatenate, zip(*words, strict=True)))
        self._next_upload = int(self._reserved_until[lanes].min())

    def _requests(self, requests: list[Request], rows: Indices) -> Iterator[Words]:
        ledger, lanes = self._cache.ledger, self.lanes
        self._sampler.assign(rows, requests)
        yield self._words(lanes.tokens, rows, ledger.tokens[rows].astype(np.int32))
        yield self._words(lanes.kappa, rows, ledger.kappa[rows].astype(np.int32))
        for field, streams in zip(lanes.streams, ledger.streams[rows].T, strict=True):
            yield self._words(field, rows, streams.astype(np.int32))

    def _pages(self, requests: list[Request], rows: Indices) -> Iterator[Words]:
        """Reserve pages for the newest tokens and as many more as `_tokens_ahead` says; yield them."""
        ledger, extra = self._cache.ledger, self._tokens_ahead()
        tokens = np.array([len(request.prompt) + request.num_scheduled - 1 for request in requests], np.int64)
        left = np.array([request.max_tokens for request in requests], np.int64) - tokens
        ahead = np.minimum(np.maximum(left, 0), extra)
        self._cache.reserve([r.state for r in requests if r.state], tokens + ahead)
        self._reserved_until[rows] = self._launches + 1 + ahead
        lane, column, _ = ledger.cells(rows, self._uploaded_pages[rows], ledger.pages[rows])
        self._uploaded_pages[rows] = ledger.pages[rows]
        table = self.lanes.table
        yield int(table.storage_offset()) + lane * table.stride(0) + column, ledger.table[lane, column]

    def _tokens_ahead(self) -> int:
        """Return for how many more tokens of each request pages are reserved: few where few are free."""
        cache, requests = self._cache, len(self._batch)
        if cache.has_free([PLENTY * pages for pages in cache.most_needed(requests, MANY_AHEAD + 2)]):
            return MANY_AHEAD
        extra = TOKENS_AHEAD
        while extra and not cache.make_room([cache.most_needed(requests, extra + 2)]):
            extra //= 2
        return extra

    def _words(self, field: Tensor, rows: Indices, values: NDArray[np.int32]) -> Words:
        """Return the words that set a field of these lanes to `values`."""
        return int(field.storage_offset()) + rows, values
