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
from model import Selection, Thoughtbubbles


@dataclass
class _Lane:
    """What the host has told the device of a request."""

    index: int
    pages: list[int]
    """Of each segment, pages in its table."""
    draws: bool = False
    """Whether the device has drawn its newest token, and so has it."""


@dataclass(frozen=True)
class Flight:
    """A step that the device was asked for."""

    requests: list[Request]
    states: list[ForkState]
    """Theirs when it was asked for: a request that has since got another, or none, no longer takes part."""
    logits: Tensor
    """(B,V), theirs until the next step is asked for."""
    drawn: bool
    """Whether the device draws the tokens."""
    report: Tensor
    """(1+G,B) int32 on the host, of `DecodeStep`, once it has landed."""
    tally: Tensor
    """(G,2) int64 on the host, likewise."""
    landed: torch.cuda.Event | None

    def takes_part(self, place: int) -> bool:
        """Whether the request at this place still is what it was."""
        return self.requests[place].state is self.states[place]


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
        self._held: dict[ForkState, _Lane] = {}
        self._idle = list(range(lanes))
        if device.type == "cuda":
            for step in self._steps.values():
                step.capture()

    def launch(self, requests: list[Request], *, drawing: bool) -> Flight:
        """Ask for the logits that follow these requests' tokens, and where `drawing` for a token of each.

        They have a state, and pages for all the streams that the step may give them.
        """
        states = [_state(request) for request in requests]
        self._disembark(set(states))
        self._write(requests, states)
        lanes = [self._held[state] for state in states]
        step = self._steps[1 << (len(requests) - 1).bit_length()]
        places = [lane.index for lane in lanes] + [-1] * (step.places - len(lanes))
        step.lane.copy_(torch.tensor(places, dtype=torch.int32, pin_memory=step.lane.is_cuda), non_blocking=True)
        step.run(drawing=drawing)
        for lane in lanes:
            lane.draws = drawing
        report, tally = _fetch(step.report), _fetch(step.tally)
        landed = None
        if step.lane.is_cuda:
            landed = torch.cuda.Event()
            landed.record()
        return Flight(requests, states, step.logits[: len(requests)], drawing, report, tally, landed)

    def land(self, flight: Flight) -> tuple[list[int], list[list[int]]]:
        """Wait for a flight. Each request's token, and for each segment each request's new streams."""
        if flight.landed is not None:
            flight.landed.synchronize()
        for layer, (forks, deletions) in zip(
            self._fork_layers, (flight.tally - self._counted).tolist()[1:], strict=True
        ):
            self._tally.forks[layer] += forks
            self._tally.deletions[layer] += deletions
        self._counted = flight.tally
        tokens, *counts = flight.report[:, : len(flight.requests)].tolist()
        return tokens, counts

    def _disembark(self, staying: set[ForkState]) -> None:
        for state in self._held.keys() - staying:
            self._idle.append(self._held.pop(state).index)

    def _write(self, requests: list[Request], states: list[ForkState]) -> None:
        """Tell the device what it does not know of these requests: all of those that are new, and new pages."""
        at: list[int] = []
        values: list[int] = []
        for request, state in zip(requests, states, strict=True):
            lane = self._held.get(state)
            if lane is None:
                lane = self._held[state] = _Lane(self._idle.pop(), [0] * len(state.pages))
                self._note(self._of_request(request, state), lane.index, at, values)
            if not lane.draws:
                self._note(self._of_output(request), lane.index, at, values)
            for segment, held in enumerate(state.pages):
                known = lane.pages[segment]
                if len(held) > known:
                    first = self.lanes.place(self.lanes.tables[segment], lane.index) + known
                    at.extend(range(first, first + len(held) - known))
                    values.extend(held[known:])
                    lane.pages[segment] = len(held)
        if at:
            self.lanes.write(at, values)

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


def _state(request: Request) -> ForkState:
    assert request.state is not None, "a cached request runs with a state"
    return request.state


def _words(kind: str, value: float) -> "array[int]":
    """A number as the device has it, in words of 32 bits."""
    return array("i", array(kind, [value]).tobytes())


def _fetch(source: Tensor) -> Tensor:
    """What a tensor of the device will have held at this point, on the host once the device is there."""
    if not source.is_cuda:
        return source.clone()
    return torch.empty_like(source, device="cpu", pin_memory=True).copy_(source, non_blocking=True)
