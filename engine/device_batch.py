"""Running requests on the device, which decodes one step ahead of the host.

A step is asked for before the tokens of the last one are known: they are on the device, where they are needed. The host
meanwhile reads the step before. What it must know beforehand is how many pages a step can need, and that it knows from
the budget, not from the tokens.

Letters: B places of the batch, G segments, V vocabulary.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.cached_forward import ForkTally
from engine.decode_step import DecodeStep
from engine.fork_cache import ForkCache, ForkState, most_streams
from engine.kernels.lanes import Lanes
from engine.request import Request
from engine.transfer import to_device, to_host
from model import Selection, Thoughtbubbles

SPARE = 4
"""Tokens that pages are taken for ahead of those that must be, where there are plenty: it is asked less often then."""


@dataclass
class _Lane:
    """What the host has told the device of a request."""

    index: int
    pages: list[int]
    """Of each segment, pages in its table."""
    left: int = 0
    """Steps that these are enough for, whatever streams they give."""
    draws: bool = False
    """Whether the device has drawn its newest token, and so has it."""


@dataclass(frozen=True)
class Flight:
    """A step that the device was asked for."""

    requests: list[Request]
    states: list[ForkState]
    """Theirs when it was asked for: a request that has since got another, or none, takes no part in it any more."""
    logits: Tensor
    """(B,V), theirs until the next step is asked for."""
    drawn: bool
    """Whether the device draws the tokens."""
    report: Tensor
    """(1+G,B) int32 on the host, of `DecodeStep`, once it has landed."""
    tally: Tensor
    """(G,2) int64 on the host, likewise."""
    landed: torch.cuda.Event | None


class DeviceBatch:
    """The lanes of running requests, and a step for each size of batch, captured beforehand where that can be."""

    def __init__(
        self,
        model: Thoughtbubbles,
        cache: ForkCache,
        tally: ForkTally,
        *,
        lanes: int,
        max_tokens: int,
        vocabulary: int,
    ) -> None:
        """For so many requests at once, of at most `max_tokens`, that draw from the first `vocabulary` tokens."""
        device = model.transformer.wte.weight.device
        everything = Selection.of(model.config, "causal", float(1 << len(model.config.fork_layers)))
        pages = [-(-n // cache.page_size) for n in most_streams(model.config, everything, max_tokens)]
        self.lanes = Lanes.empty(lanes, pages, device)
        forks = torch.zeros((len(pages), 2), dtype=torch.int64, device=device)
        sizes = [1 << i for i in range((lanes - 1).bit_length() + 1)]
        self._steps = {
            n: DecodeStep(model, cache, self.lanes, places=n, vocabulary=vocabulary, tally=forks) for n in sizes
        }
        self._tally = tally
        self._counted = torch.zeros(forks.shape, dtype=forks.dtype)
        self._fork_layers = model.config.fork_layers
        self._cache = cache
        self._held: dict[ForkState, _Lane] = {}
        self._seated: list[int] = []
        self._idle = list(range(lanes))
        if device.type == "cuda":
            for step in self._steps.values():
                step.capture()

    def launch(self, requests: list[Request], *, drawing: bool) -> Flight:
        """Ask for the logits that follow these requests' tokens, and where `drawing` for a token of each.

        They have a state, and the scheduler has seen to it that there are pages for all that the step may give them.
        """
        states = [request.state for request in requests if request.state]
        assert len(states) == len(requests), "a cached request runs with a state"
        lanes = self._lanes_of(states)
        self._inform(requests, states, lanes)
        step = self._steps[1 << (len(requests) - 1).bit_length()]
        places = [lane.index for lane in lanes] + [-1] * (step.places - len(lanes))
        if places != self._seated:
            step.lane.copy_(to_device(places, step.lane.device))
            self._seated = places
        step.run(drawing=drawing)
        for request, lane in zip(requests, lanes, strict=True):
            request.in_flight += 1
            lane.left -= 1
            lane.draws = drawing
        report, tally = to_host(step.report), to_host(step.tally)
        landed = None
        if step.lane.is_cuda:
            landed = torch.cuda.Event()
            landed.record()
        return Flight(requests, states, step.logits[: len(requests)], drawing, report, tally, landed)

    def land(self, flight: Flight) -> tuple[list[int], list[tuple[int, ...]]]:
        """Wait for a flight. Each request's token, and the streams that it then has in each segment."""
        if flight.landed is not None:
            flight.landed.synchronize()
        for layer, (forks, deletions) in zip(
            self._fork_layers, (flight.tally - self._counted).tolist()[1:], strict=True
        ):
            self._tally.forks[layer] += forks
            self._tally.deletions[layer] += deletions
        self._counted = flight.tally
        tokens, *ends = flight.report[:, : len(flight.requests)].tolist()
        return tokens, list(zip(*ends, strict=True))

    def _lanes_of(self, states: list[ForkState]) -> list[_Lane]:
        """A lane for each of these; nobody else keeps one."""
        if len(states) != len(self._held) or not all(state in self._held for state in states):
            for gone in self._held.keys() - set(states):
                self._idle.append(self._held.pop(gone).index)
            for state in states:
                if state not in self._held:
                    self._held[state] = _Lane(self._idle.pop(), [0] * len(state.pages))
        return [self._held[state] for state in states]

    def _inform(self, requests: list[Request], states: list[ForkState], lanes: list[_Lane]) -> None:
        """Take the pages that the next step may need, and tell the device what it does not know of these requests."""
        at: list[int] = []
        values: list[int] = []
        for request, state, lane in zip(requests, states, lanes, strict=True):
            if lane.left and lane.draws:  # as mostly, and this is asked for every token
                continue
            if not any(lane.pages):
                self._note(self._of_request(request, state), lane.index, at, values)
            if not lane.draws:
                self._note(self._of_output(request), lane.index, at, values)
            if not lane.left:
                tokens = request.num_tokens + request.in_flight
                spare = min(SPARE, request.max_tokens - tokens) if self._cache.is_roomy(len(lanes), SPARE + 2) else 0
                lane.left = 1 + max(0, spare)
                self._cache.reserve(state, request.selection, tokens + max(0, spare))
                self._note_pages(state, lane, at, values)
        if at:
            self.lanes.write(at, values)

    def _note_pages(self, state: ForkState, lane: _Lane, at: list[int], values: list[int]) -> None:
        for segment, held in enumerate(state.pages):
            known = lane.pages[segment]
            if len(held) > known:
                first = self.lanes.place(self.lanes.tables[segment], lane.index) + known
                at.extend(range(first, first + len(held) - known))
                values.extend(held[known:])
                lane.pages[segment] = len(held)

    def _note(self, facts: Sequence[tuple[Tensor, "array[int]"]], lane: int, at: list[int], values: list[int]) -> None:
        for field, words in facts:
            first = self.lanes.place(field, lane)
            at.extend(range(first, first + len(words)))
            values.extend(words)

    def _of_request(self, request: Request, state: ForkState) -> list[tuple[Tensor, "array[int]"]]:
        lanes = self.lanes
        counts = [(field, _words("i", state.streams(i))) for i, field in enumerate(lanes.streams)]
        return [
            (lanes.tokens, _words("i", state.tokens)),
            (lanes.kappa, _words("i", state.kappa)),
            (lanes.temperature, _words("f", request.params.temperature)),
            (lanes.seed, _words("q", request.seed)),
            *counts,
        ]

    def _of_output(self, request: Request) -> list[tuple[Tensor, "array[int]"]]:
        lanes = self.lanes
        return [(lanes.token, _words("i", request.newest)), (lanes.drawn, _words("q", len(request.output)))]


def _words(kind: str, value: float) -> "array[int]":
    """A number as the device has it, in words of 32 bits."""
    return array("i", array(kind, [value]).tobytes())
