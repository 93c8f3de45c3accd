"""Running requests on the device, which decodes one step ahead of the host.

A step is asked for before the tokens of the last one are known: they are on the device, where they are needed. The host
meanwhile reads the step before. What it must know beforehand is how many pages a step can need, and that it knows from
the budget, not from the tokens.

Letters: B places of the batch, G segments, V vocabulary.
"""

from collections.abc import Iterator
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
from thoughtbubbles.engine.cuda.kernels.lanes import Lanes
from thoughtbubbles.engine.portable.forward import ForkTally
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.transfer import to_device, to_host
from thoughtbubbles.model import Thoughtbubbles

SPARE = 15
"""Tokens that pages are taken for ahead of those that must be, where there are plenty: it is asked less often then."""

Words = tuple[Indices, Numbers]
"""Places in `Lanes.memory`, and what goes there."""


@dataclass(frozen=True)
class Flight:
    """A step that the device was asked for."""

    requests: list[Request]
    lanes: Indices
    """(B,)"""
    openings: Indices
    """(B,) of the states that had the lanes: who has since lost or left his takes no part in it any more."""
    logits: Tensor
    """(B,V); where the device draws, the next launch overwrites them."""
    drawn: bool
    """Whether the device draws the tokens."""
    step: DecodeStep
    told: Tensor
    """`DecodeStep.told` on the host, once it has landed."""
    landed: torch.cuda.Event | None


class DeviceBatch:
    """The lanes of running requests, and a step for each size of batch, captured beforehand where that can be."""

    def __init__(
        self,
        model: Thoughtbubbles,
        cache: ForkCache,
        tally: ForkTally,
        *,
        vocabulary: int,
    ) -> None:
        """For as many requests at once as the cache is for, that draw from the first `vocabulary` tokens."""
        device = model.transformer.wte.weight.device
        lanes, columns = cache.ledger.table.shape
        pages = np.diff(cache.ledger.begin, append=columns).tolist()
        self.lanes = Lanes.empty(lanes, pages, device)
        sizes = [1 << i for i in range((lanes - 1).bit_length() + 1)]
        self._column_at = np.concatenate([self.lanes.place(table, 0) + np.arange(n)
                                          for table, n in zip(self.lanes.tables, pages, strict=True)])  # fmt: skip
        """(ΣP,) where in `Lanes.memory` lane 0 has what stands in a column of `Ledger.table`; the others follow."""
        self._column_stride = np.repeat(pages, pages)
        """(ΣP,) after so many words."""
        self._steps = {n: DecodeStep(model, cache, self.lanes, places=n, vocabulary=vocabulary) for n in sizes}
        self._tally = tally
        self._counted = {step: np.zeros((len(pages), 2), np.int64) for step in self._steps.values()}
        """What of each step's tally is in ours."""
        self._fork_layers = model.config.fork_layers
        self._cache = cache
        self._launches = 0
        self._quiet_until = 0
        """The launch before which those who have places need be told nothing."""
        self._seated: list[ForkState] = []
        self._lanes = np.zeros(0, np.int64)
        """(B,) of those who have places."""
        self._openings = np.zeros(lanes, np.int64)
        """(L,) of the states that the device was told of."""
        self._told = np.zeros((lanes, len(pages)), np.int64)
        """(L,G) pages in the device's tables."""
        self._enough_until = np.zeros(lanes, np.int64)
        """(L,) the launch before which their pages are enough, whatever streams come."""
        self._draws = np.zeros(lanes, np.bool_)
        """(L,) whether the device has drawn the newest token, and so has it."""
        if device.type == "cuda":
            stream = torch.cuda.Stream(device)
            for step in self._steps.values():
                step.capture(stream)

    def launch(self, requests: list[Request], *, drawing: bool) -> Flight:
        """Ask for the logits that follow these requests' tokens, and where `drawing` for a token of each.

        They have a state, and the scheduler has seen to it that there are pages for all that the step may give them.
        """
        states = [request.state for request in requests if request.state]
        assert len(states) == len(requests), "a cached request runs with a state"
        step = self._steps[1 << (len(requests) - 1).bit_length()]
        if states != self._seated:
            self._seat(states, step)
        lanes = self._lanes
        if self._launches == self._quiet_until:
            self._inform(requests, lanes)
        step.run(drawing=drawing)
        self._launches += 1
        self._draws[lanes] = drawing
        if not drawing:
            self._quiet_until = self._launches
        told, landed = to_host(step.told), None
        if step.lane.is_cuda:
            landed = torch.cuda.Event()
            landed.record()
        logits = step.logits[: len(requests)]
        if not drawing:
            logits = logits.clone()  # another launch of this step may come before the host draws from them
        return Flight(requests, lanes, self._openings[lanes], logits, drawing, step, told, landed)

    def land(self, flight: Flight) -> tuple[Numbers, Numbers]:
        """Wait for a flight. Each request's token (B,), and the streams (B,G) that it then has."""
        if flight.landed is not None:
            flight.landed.synchronize()
        tally, report = flight.step.read(flight.told)
        for layer, (forks, deletions) in zip(
            self._fork_layers, (tally - self._counted[flight.step]).tolist()[1:], strict=True
        ):
            self._tally.forks[layer] += forks
            self._tally.deletions[layer] += deletions
        self._counted[flight.step] = tally
        report = report[:, : len(flight.requests)]
        return report[0], report[1:].T

    def _seat(self, states: list[ForkState], step: DecodeStep) -> None:
        """Give these, and nobody else, the places of a step."""
        rows = [state.row for state in states]
        step.lane.copy_(to_device(rows + [-1] * (step.places - len(rows)), step.lane.device))
        self._seated, self._lanes, self._quiet_until = states, np.array(rows, np.int64), self._launches

    def _inform(self, requests: list[Request], lanes: Indices) -> None:
        """Take the pages that the next step may need, and tell the device what it does not know of these requests."""
        openings = self._cache.ledger.opening[lanes]
        new = self._openings[lanes] != openings
        undrawn = new | ~self._draws[lanes]
        short = new | (self._enough_until[lanes] <= self._launches + SPARE // 2)  # and who soon would be
        self._openings[lanes] = openings
        self._told[lanes[new]] = 0
        words: list[Words] = []
        for mask, facts in ((new, self._of_requests), (undrawn, self._of_outputs), (short, self._of_pages)):
            if mask.any():
                words += facts([requests[i] for i in mask.nonzero()[0].tolist()], lanes[mask])
        if words:
            self.lanes.write(*map(np.concatenate, zip(*words, strict=True)))
        self._quiet_until = int(self._enough_until[lanes].min())

    def _of_requests(self, requests: list[Request], rows: Indices) -> Iterator[Words]:
        ledger, lanes = self._cache.ledger, self.lanes
        yield self._words(lanes.tokens, rows, ledger.tokens[rows].astype(np.int32))
        yield self._words(lanes.kappa, rows, ledger.kappa[rows].astype(np.int32))
        yield self._words(
            lanes.temperature, rows, np.array([r.params.effective_temperature for r in requests], np.float32)
        )
        yield self._words(lanes.seed, rows, np.array([request.seed for request in requests], np.int64))
        for field, streams in zip(lanes.streams, ledger.streams[rows].T, strict=True):
            yield self._words(field, rows, streams.astype(np.int32))

    def _of_outputs(self, requests: list[Request], rows: Indices) -> Iterator[Words]:
        yield self._words(self.lanes.token, rows, np.array([request.newest for request in requests], np.int32))
        yield self._words(self.lanes.drawn, rows, np.array([len(request.output) for request in requests], np.int64))

    def _of_pages(self, requests: list[Request], rows: Indices) -> Iterator[Words]:
        """Pages for the next step and, where there is room, for some more."""
        ledger = self._cache.ledger
        most = [self._cache.most_needed(len(self._seated), SPARE + 2)]
        spare = SPARE * self._cache.fits(most)
        if spare:
            self._cache.evict(most)
        tokens = np.array([len(request.prompt) + request.num_scheduled - 1 for request in requests], np.int64)
        left = np.array([request.max_tokens for request in requests], np.int64) - tokens
        ahead = np.minimum(np.maximum(left, 0), spare)
        self._cache.reserve([r.state for r in requests if r.state], tokens + ahead)
        self._enough_until[rows] = self._launches + 1 + ahead
        lane, column, _ = ledger.places(rows, self._told[rows], ledger.pages[rows])
        self._told[rows] = ledger.pages[rows]
        yield self._column_at[column] + self._column_stride[column] * lane, ledger.table[lane, column]

    def _words(self, field: Tensor, rows: Indices, values: NDArray[np.generic]) -> Words:
        """What a field is to have of lanes, in words of 32 bits."""
        start, width = self.lanes.place(field, 0), values.itemsize // 4
        at = start + width * rows[:, None] + np.arange(width)
        return at.ravel(), values.view(np.int32)
