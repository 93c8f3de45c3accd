"""The report of a measurement: as numbers, JSON and a table."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from thoughtbubbles_client.bench.measure import Answered, Failed

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, 90th and 99th percentile of times in seconds; each is one of the measured values."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """Return the percentiles of `values`; None if there are none."""
        ordered = sorted(values)
        if not ordered:
            return None
        p50, p90, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in QUANTILES)
        return cls(p50=p50, p90=p90, p99=p99)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of a measurement. Tokens and times are of answered requests."""

    seconds: float
    """Time from the first request to the last answer."""
    answered: int
    """Number of requests that were answered completely."""
    errors: Mapping[str, int]
    """Number of failed requests, by kind."""
    prompt_tokens: int
    """Tokens of all prompts."""
    completion_tokens: int
    """Tokens of all completions."""
    time_to_first_token_seconds: Spread | None
    """Time from request to first token."""
    inter_token_seconds: Spread | None
    """Time between one token and the next; 0 for tokens that arrive together."""
    answer_seconds: Spread | None
    """Time from request to complete answer."""

    @classmethod
    def of(cls, outcomes: Sequence[Answered | Failed], seconds: float) -> Self:
        """Return the report of these requests, which took `seconds` together."""
        answered = [outcome for outcome in outcomes if isinstance(outcome, Answered)]
        return cls(
            seconds=seconds,
            answered=len(answered),
            errors=dict(Counter(outcome.kind for outcome in outcomes if isinstance(outcome, Failed)).most_common()),
            prompt_tokens=sum(each.prompt_tokens for each in answered),
            completion_tokens=sum(each.completion_tokens for each in answered),
            time_to_first_token_seconds=Spread.of([each.arrivals[0] for each in answered if each.arrivals]),
            inter_token_seconds=Spread.of([gap for each in answered for gap in each.gaps]),
            answer_seconds=Spread.of([each.seconds for each in answered]),
        )

    @property
    def requests_per_second(self) -> float:
        """Answers per second of all clients together."""
        return self.answered / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of all clients together."""
        return self.completion_tokens / self.seconds

    def as_json(self) -> dict[str, Any]:
        """Return the report for JSON; times in seconds."""
        rates = {"requests_per_second": self.requests_per_second, "tokens_per_second": self.tokens_per_second}
        return asdict(self) | rates

    def as_text(self) -> str:
        """Return the report as a table; times in milliseconds."""
        failed, tokens = sum(self.errors.values()), f"{self.prompt_tokens} tokens read, {self.completion_tokens} made"
        lines = [
            f"{self.answered} answered and {failed} failed in {self.seconds:.1f} s; {tokens}",
            "",
            f"requests/s {self.requests_per_second:10.2f}",
            f"tokens/s   {self.tokens_per_second:10.1f}",
            "",
            "milliseconds              p50       p90       p99",
            _row("time to first token", self.time_to_first_token_seconds),
            _row("inter-token time", self.inter_token_seconds),
            _row("whole answer", self.answer_seconds),
        ]
        return "\n".join([*lines, *(f"{kind}: {times} failed" for kind, times in self.errors.items())])


def _row(name: str, spread: Spread | None) -> str:
    times = ("–",) * 3 if spread is None else (f"{1000 * time:.1f}" for time in (spread.p50, spread.p90, spread.p99))
    return f"{name:19}" + "".join(f"{time:>10}" for time in times)
