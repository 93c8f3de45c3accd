"""What passes between scheduler, executor and engine in a step: the plan, its flights, and their outputs in columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal, NamedTuple

from thoughtbubbles.engine.prompt_report import ForkScores, PromptReport, Scored
from thoughtbubbles.engine.request import Request

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Plan:
    """How many tokens of each request the next step computes: of its prompt, or the one drawn last and its draft."""

    requests: list[Request]
    num_tokens: list[int]
    """(R,) 0 for a request whose last token has been scheduled already, and is not known yet."""
    num_prefills: int = 0
    """The first so many requests are prefilled; the others decode."""
    continues: bool = False
    """Whether this is the second part of a step, whose first part was launched and has not landed."""

    @property
    def phase(self) -> Phase:
        """`prefill` if any request is prefilled."""
        return "prefill" if self.num_prefills else "decode"

    @property
    def prefills(self) -> Iterator[tuple[Request, int]]:
        """The requests that are prefilled, and how many tokens of each are computed."""
        return islice(zip(self.requests, self.num_tokens, strict=True), self.num_prefills)

    @property
    def decodes(self) -> Iterator[tuple[Request, int]]:
        """The requests that decode, and how many tokens of each are computed: none, or one and its draft."""
        return islice(zip(self.requests, self.num_tokens, strict=True), self.num_prefills, None)

    def only(self, *, paged: bool) -> "Plan":
        """Return the part of the plan whose requests have pages, or the part whose requests have none."""
        kinds = [request.paged for request in self.requests]
        if kinds.count(paged) == len(kinds):
            return self
        rows = [i for i, request in enumerate(self.requests) if request.paged == paged]
        prefills = sum(i < self.num_prefills for i in rows)
        return Plan([self.requests[i] for i in rows], [self.num_tokens[i] for i in rows], prefills)


class Row(NamedTuple):
    """What a step computed of one request, or of one token of it if it has a draft."""

    fork_count: int
    stream_tokens: int
    num_streams: int
    finite: bool
    token: int | None
    logprob: Scored | None
    prompt_report: PromptReport | None
    fork_scores: Sequence[ForkScores]


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a step computed, in columns with one entry a request, and one more for each token of its draft."""

    requests: Sequence[Request]
    """The request of each entry, without those that were aborted or preempted since the launch."""
    step_fork_counts: Sequence[int]
    """Streams after the last fork layer of each token that was computed, of one entry after the other."""
    fork_counts: Sequence[int]
    """Streams after the last fork layer of the entry's last token."""
    stream_tokens: Sequence[int]
    """Streams after the last fork layer of all tokens of the entry that were computed."""
    num_streams: Sequence[int]
    """Streams after the last fork layer of all tokens computed so far."""
    finite: Sequence[bool]
    """Whether no logit is NaN or infinite."""
    tokens: Sequence[int | None]
    """The token drawn; None if tokens of the request are left to compute, if `Request.draws` is false, if logits are
    NaN or infinite, or if the grammar has failed."""
    logprobs: Sequence[Scored | None]
    """Log-probability of that token, and the likeliest ones; None unless requested."""
    prompt_reports: Sequence[PromptReport | None]
    """Report of the prompt that was computed; None unless requested."""
    fork_scores: Sequence[Sequence[ForkScores]]
    """Of each token of the entry that was computed; empty unless requested."""

    def rows(self) -> Iterator[tuple[Request, Row]]:
        """Return each entry as a row, with its request."""
        columns = (self.fork_counts, self.stream_tokens, self.num_streams, self.finite, self.tokens, self.logprobs,
                   self.prompt_reports, self.fork_scores)  # fmt: skip
        # As Row(*…) of each entry, in a third of the time, and one is made for every token.
        return zip(self.requests, map(partial(tuple.__new__, Row), zip(*columns, strict=True)), strict=True)


@dataclass(frozen=True)
class Landed:
    """The flight of a step that was computed as it was launched."""

    output: Output
