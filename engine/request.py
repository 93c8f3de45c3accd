"""The nouns that scheduler, runner, engine and callers share: what is asked, its state, and what is told."""

import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from thoughtbubbles.engine.cache.fork_state import ForkState
from thoughtbubbles.engine.detokenizer import Detokenizer
from thoughtbubbles.engine.prompt_report import PromptReport, TopLogprobs
from thoughtbubbles.engine.sampling_params import SamplingParams
from thoughtbubbles.model import Selection

FinishReason = Literal["stop", "length", "error"]
"""`error`: the model's logits were NaN or infinite."""


@dataclass(frozen=True)
class RequestUsage:
    """What a request took, told with its last event. Times are in seconds."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Prompt tokens that were taken from the cache."""
    stream_tokens: int
    """Stream-rows computed in the final segment."""
    computed_tokens: int
    """Tokens whose streams are known: prompt and output, but for the output's last token, which no step has computed
    unless `return_fork_counts` asked for its streams. `fork_count` and `budget_used_ratio` are of these."""
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
    """One token more of a request, or its end. A tuple, since one is made for every token that is served."""

    request_id: str
    token_id: int | None
    """The token; None where a request that generates nothing ends."""
    text: str = ""
    """Text that may be shown now; what could still become a stop string or half a character is held back."""
    logprob: float | None = None
    """Of the raw distribution; None unless asked."""
    top_logprobs: TopLogprobs = ()
    """The likeliest tokens, best first."""
    fork_count: int | None = None
    """The token's streams after the last fork layer; None unless asked."""
    prompt: PromptReport | None = None
    """On the first event, when something of the prompt was asked."""
    finish_reason: FinishReason | None = None
    """On the last event."""
    stop_reason: str | int | None = None
    """The stop string or stop token that ended it; None for end-of-text."""
    usage: RequestUsage | None = None
    """On the last event, unless that is an error."""


@dataclass(eq=False)
class Request:
    """A request while the engine has it."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    selection: Selection
    seed: int
    detokenizer: Detokenizer
    client: str = ""
    """Who sent it; requests of "" count for no client."""
    output: list[int] = field(default_factory=list)
    state: ForkState | None = None
    """What the cache holds of it: None while it waits, and always when it is recomputed."""
    held: TokenEvent | None = None
    """The event of the newest token, kept until the token's streams are known."""
    prompt_report: PromptReport | None = None
    cached_tokens: int | None = None
    """Tokens it started from when it first ran."""
    asked: int = 0
    """Tokens that were asked for: its output, and on a device that decodes ahead perhaps one that is not known yet."""
    most: int = field(init=False)
    """As many need be asked for: all that it may have and, where their streams are told, one that shows the last's."""
    stream_tokens: int = 0
    streams: int = 0
    """Live streams after the last fork layer, of the tokens that are computed."""
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    first_token: float | None = None

    def __post_init__(self) -> None:
        self.most = self.params.max_tokens + self.params.return_fork_counts

    @cached_property
    def cached(self) -> bool:
        """Whether it runs over the fork-state cache, or is recomputed for every token."""
        return self.selection.rule == "causal"

    @property
    def tokens(self) -> list[int]:
        """Prompt and output."""
        return [*self.prompt, *self.output]

    def first(self, tokens: int) -> tuple[int, ...]:
        """The first so many of its tokens, or all."""
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
    def draws_alone(self) -> bool:
        """Whether its next token is a draw from what the model says, that nothing else need be known for."""
        return len(self.output) >= self._draws_alone_from

    @cached_property
    def _draws_alone_from(self) -> float:
        params = self.params
        restricts = params.effective_temperature > 0 and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)
        return math.inf if params.adjusts_logits or restricts or params.logprobs is not None else params.min_tokens

    @property
    def max_tokens(self) -> int:
        """Tokens it may reach."""
        return len(self.prompt) + self.params.max_tokens

    @property
    def pending(self) -> list[int]:
        """The tokens that the next step computes."""
        return self.tokens[self.state.tokens :] if self.state else self.tokens

    @property
    def num_pending(self) -> int:
        """How many they are."""
        return self.num_tokens - self.state.tokens if self.state else self.num_tokens

    @property
    def wants_prompt_report(self) -> bool:
        """Whether something of the prompt was asked and has not been computed."""
        asked = self.params.prompt_logprobs is not None or self.params.return_fork_counts
        return asked and self.prompt_report is None

    def hold(self, event: TokenEvent) -> None:
        """Keep the event of the newest token until one more is asked for, which shows that token's streams."""
        self.held = event
        if event.finish_reason is not None:
            self.most = len(self.output) + 1

    def count(self, streams: int, computed: int) -> None:
        """Note its live streams after the last fork layer, and how many a step computed there."""
        self.streams = streams
        self.stream_tokens += computed

    def usage(self) -> RequestUsage:
        """Return what the request took. It has ended, and the cache still has its state."""
        now = time.monotonic()
        computed = self.num_tokens
        if self.output and not self.params.return_fork_counts:
            computed -= 1
        assert self.state is None or self.state.tokens == computed, "streams of other tokens than are reported"
        started = self.started or now
        first = self.first_token or now
        return RequestUsage(
            prompt_tokens=len(self.prompt),
            completion_tokens=len(self.output),
            cached_tokens=self.cached_tokens or 0,
            stream_tokens=self.stream_tokens,
            computed_tokens=computed,
            fork_count=self.streams - computed,
            budget_used_ratio=self.streams / self.selection.budget(computed),
            queue_seconds=started - self.arrived,
            prefill_seconds=first - started,
            decode_seconds=now - first,
        )
