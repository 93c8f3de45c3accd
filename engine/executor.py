"""The executor protocol: a plan in, columns out. Scheduler and engine know nothing else of how a step is computed."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from thoughtbubbles.engine.batch import Output, Plan
from thoughtbubbles.engine.lookup import Guessing
from thoughtbubbles.engine.portable.forward import ForkTally
from thoughtbubbles.engine.request import Request

Flight = TypeVar("Flight")
"""A launched step, or a part of one; each executor has its own type."""


class Executor(Protocol[Flight]):
    """Computes plans over the fork-state cache, in whose pages and ledger it records the streams of each token."""

    @property
    def name(self) -> str:
        """Its name in `/version` and in the log: `portable`, `native (avx512)`, `cuda`."""

    @property
    def runs_ahead(self) -> bool:
        """Whether `launch` returns before the plan is computed."""

    @property
    def mixes(self) -> bool:
        """Whether a plan should prefill some requests and decode others, or only one of both."""

    @property
    def max_prefill_tokens(self) -> int:
        """Most prompt tokens that one step should compute: more would delay the requests that decode."""

    @property
    def max_lone_prefill_tokens(self) -> int:
        """The same where none decodes."""

    @property
    def part_tokens(self) -> int:
        """As `Scheduler.part_tokens`; 0 unless it runs ahead."""

    @property
    def guessing(self) -> Guessing:
        """Which guesses pay, with `speculate`."""

    @property
    def tally(self) -> ForkTally:
        """Forks and deletions counted in all landed steps."""

    def prepare(self) -> None:
        """Compile and capture what the first requests would otherwise wait for."""

    def read_weights(self) -> None:
        """Read the model's weights again, which have been overwritten in place; no request runs.

        Raises if there is no memory to pack them, and then keeps what it read before.
        """

    def launch(self, plan: Plan) -> list[Flight]:
        """Start to compute a plan, and return the flights that are due, in the order in which to land them.

        The scheduler has freed the pages that the plan needs. An executor that lands at once returns the flight of this
        plan. One that runs ahead may keep the decode of this plan for the next launch to return, and returns here the
        one that it kept before. An empty plan launches nothing. One that `continues` has prompts only.
        """

    def release(self, requests: Sequence[Request]) -> None:
        """Keep nothing for requests that have ended or were aborted."""

    def land(self, flight: Flight) -> Output:
        """Wait for a flight and return its output. The output of every flight before it has been reported."""
