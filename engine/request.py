"""The nouns that scheduler, executors, engine and callers share: a request, its usage, and the events of its tokens."""

import math
import time
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from thoughtbubbles.engine.cache.fork_state import ForkState
from thoughtbubbles.engine.detokenizer import Detokenizer
from thoughtbubbles.engine.lookup import Lookup
from thoughtbubbles.engine.prompt_report import ForkScores, PromptReport, TopLogprobs
from thoughtbubbles.engine.sampling_params import SamplingParams
from thoughtbubbles.engine.structured.state import GrammarState
from thoughtbubbles.model import Selection

FinishReason = Literal["stop", "length", "error"]
"""`error`: the model's logits were NaN or infinite, or the grammar became too complex, as `stop_reason` then says."""


class RequestUsage(NamedTuple):
    """What a request took, reported with its last event. Times are in seconds."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Prompt tokens that were found in the cache."""
    stream_tokens: int
    """Streams computed in the last segment."""
    computed_tokens: int
    """Tokens whose streams are known: prompt and output, but for the output's last token, which no step has computed
    unless the request reports forks. `fork_count` and `budget_used_ratio` are of these."""
    fork_count: int
    """Streams that the computed tokens have after the last fork layer, beyond one a token."""
    budget_used_ratio: float
    """Streams that the computed tokens have after the last fork layer, over the budget of so many tokens."""
    queue_seconds: float
    """From arrival to the first step."""
    prefill_seconds: float
    """From the first step to the first token."""
    decode_seconds: float
    """From the first token to the last."""


class TokenEvent(NamedTuple):
    """One more token of a request, or its end. A tuple, since one is made for every token that is served."""

    request_id: str
    token_id: int | None
    """The token; None where a request that generates nothing ends, and in an error."""
    text: str = ""
    """Text that may be shown now, without what could still become a stop string or a whole character."""
    logprob: float | None = None
    """Of the raw distribution; None unless requested."""
    top_logprobs: TopLogprobs = ()
    """The likeliest tokens, best first."""
    fork_count: int | None = None
    """The token's streams after the last fork layer; None unless requested, and if they are NaN or infinite."""
    fork_scores: ForkScores | None = None
    """P of the token's streams after each fork layer; None as `fork_count`."""
    prompt: PromptReport | None = None
    """On the first event, if a report of the prompt was requested."""
    finish_reason: FinishReason | None = None
    """On the last event."""
    stop_reason: str | int | None = None
    """The stop string or stop token that ended it, or why its grammar failed; None for end-of-text."""
    usage: RequestUsage | None = None
    """On the last event, unless that is an error."""


@dataclass(eq=False)
class Group:
    """Requests that are all computed with the same weights, such as the choices of one completion."""

    started: bool = False
    """Whether one of them has been admitted."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class Request:
    """A request from `Engine.add` to its last event."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    selection: Selection
    seed: int
    detokenizer: Detokenizer
    client: str = ""
    """The client that sent it; requests of "" count for no client."""
    group: Group = field(default_factory=Group)
    lookup: Lookup | None = None
    """What guesses its tokens; None if nothing does."""
    grammar: GrammarState | None = None
    """Where its output stands in the grammar that it must match, if any; preemption leaves it as it is."""
    output: list[int] = field(default_factory=list)
    draft: list[int] = field(default_factory=list)
    """Guesses of the tokens after the next one, computed in the same step as the newest token."""
    state: ForkState | None = None
    """Its tokens and streams in the fork-state cache; None while it waits, and always if it is not `paged`."""
    pending_event: TokenEvent | None = None
    """The event of the newest token, kept until the token's streams are known."""
    prompt_report: PromptReport | None = None
    cached_tokens: int | None = None
    """Length of the cached prefix it started from when it first ran."""
    num_scheduled: int = 0
    """Output tokens that were scheduled: those known, and one more if the executor runs ahead and has not landed it."""
    reports_forks: bool = field(init=False)
    """As `SamplingParams.reports_forks`."""
    may_stop: bool = field(init=False)
    """Whether stop strings or stop tokens may end it."""
    paged: bool = field(init=False)
    """Whether its streams are in pages of the fork-state cache, which others may share.

    Only a rule that never revises allows it, and only the forks that every request with the same tokens has.
    """
    max_scheduled: int = field(init=False)
    """Limit of `num_scheduled`: `max_tokens`, and one more if the streams of the last token are to be reported."""
    stream_tokens: int = 0
    streams: int = 0
    """Streams after the last fork layer of all its computed tokens."""
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    first_token: float | None = None
    _draws_alone_from: float = field(init=False)
    """Output tokens from which on it `draws_alone`."""

    def __post_init__(self) -> None:
        params = self.params
        # Kept, for they are read for every token; not as cached properties, which make each attribute slower to read.
        self.reports_forks = params.reports_forks
        self.may_stop = bool(params.stop or params.stop_token_ids)
        self.max_scheduled = params.max_tokens + params.reports_forks
        self.paged = self.selection.rule == "causal" and not (params.fork_bias or params.return_fork_scores)
        self._draws_alone_from = math.inf if params.changes_draws else params.min_tokens

    @property
    def tokens(self) -> list[int]:
        """Prompt and output."""
        return [*self.prompt, *self.output]

    def first(self, tokens: int) -> tuple[int, ...]:
        """Return its first `tokens` tokens, or all if it has fewer."""
        return (*self.prompt[:tokens], *self.output[: max(0, tokens - len(self.prompt))])

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output."""
        return len(self.prompt) + len(self.output)

    @property
    def newest(self) -> int:
        """Its last token."""
        return self.output[-1] if self.output else self.prompt[-1]

    @property
    def most_guesses(self) -> int:
        """Number of tokens that may follow the next one that is scheduled."""
        return self.params.max_tokens - self.num_scheduled - 1

    @property
    def in_flight(self) -> bool:
        """Whether its newest token has been scheduled and is not known yet."""
        return self.num_scheduled > len(self.output)

    def with_guesses(self, number: int) -> list[int]:
        """Return its output and the first `number` guesses of its draft."""
        return [*self.output, *self.draft[:number]] if number else self.output

    @property
    def draws(self) -> bool:
        """Whether another token is to be drawn once all its tokens are computed: none after the last one."""
        return len(self.output) + self.reports_forks < self.max_scheduled

    @property
    def draws_alone(self) -> bool:
        """Whether seed, position, temperature and logits suffice to draw its next token."""
        return len(self.output) >= self._draws_alone_from

    @property
    def max_tokens(self) -> int:
        """Most tokens of prompt and output."""
        return len(self.prompt) + self.params.max_tokens

    @property
    def pending(self) -> list[int]:
        """Its tokens that are not computed yet."""
        first = self.state.tokens if self.state else 0
        return [*self.prompt[first:], *self.output[max(0, first - len(self.prompt)) :]]

    @property
    def num_pending(self) -> int:
        """Number of tokens that are not computed yet."""
        return self.num_tokens - self.state.tokens if self.state else self.num_tokens

    @property
    def is_computed(self) -> bool:
        """Whether all its tokens are computed, once a step has landed. A request without pages always computes all."""
        return self.state is None or self.state.tokens >= self.num_tokens  # more: guesses

    @property
    def wants_prompt_report(self) -> bool:
        """Whether a report of its prompt is requested and not made yet."""
        wanted = self.params.prompt_logprobs is not None or self.reports_forks
        return wanted and self.prompt_report is None

    def finish(self) -> None:
        """Draw no token after the newest one, whose streams are computed only if they are to be reported."""
        self.max_scheduled = len(self.output) + self.reports_forks

    def drop_draft(self) -> None:
        """Remove the guesses, once they are checked."""
        self.draft = []
        self.num_scheduled = len(self.output)

    def usage(self) -> RequestUsage:
        """Return what the request took. Its last token is known, and its state is not closed yet."""
        now = time.monotonic()
        prompt, completion = len(self.prompt), len(self.output)
        computed = prompt + completion - (completion > 0 and not self.reports_forks)
        assert self.state is None or self.state.tokens >= computed, "streams of other tokens than are reported"
        started = self.started or now
        first = self.first_token or now
        return RequestUsage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_tokens=self.cached_tokens or 0,
            stream_tokens=self.stream_tokens,
            computed_tokens=computed,
            fork_count=self.streams - computed,
            budget_used_ratio=self.streams / self.selection.budget(computed),
            queue_seconds=started - self.arrived,
            prefill_seconds=first - started,
            decode_seconds=now - first,
        )
