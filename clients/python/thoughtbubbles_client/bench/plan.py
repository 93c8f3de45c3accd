"""What a measurement asks for."""

from dataclasses import dataclass

from thoughtbubbles_client.options import CompletionOptions


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One measurement. Raises `ValueError` naming the setting that cannot be."""

    concurrency: int = 8
    """Requests that run at once."""
    requests: int | None = 64
    """How many are sent in all; None sends as many as `seconds` allow."""
    seconds: float | None = None
    """How long new ones are sent; those that run then are waited for. None: until `requests` have been."""
    prompt_tokens: int = 64
    """Tokens of each prompt."""
    completion_tokens: int = 64
    """Tokens of each completion."""
    temperature: float = 1.0
    """0 is greedy."""
    fork_ratio: float | None = None
    """Residual streams per token that the budget allows; None leaves it to the server."""
    model: str | None = None
    """The model's name; None leaves it to the server."""
    openai_only: bool = False
    """Use nothing that OpenAI's API has not: lengths are then the server's to keep, and told as it tells them."""
    seed: int = 0
    """Chooses prompts and samples: another one, or a server finds the prompts of the last run in its cache."""

    def __post_init__(self) -> None:
        if (self.requests is None) == (self.seconds is None):
            raise ValueError("give either requests or seconds")
        for name in ("concurrency", "requests", "seconds", "prompt_tokens", "completion_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if self.openai_only and self.fork_ratio is not None:
            raise ValueError("fork_ratio is nothing that OpenAI's API has: leave it or openai_only out")

    def options(self, number: int) -> CompletionOptions:
        """What the request `number` asks for beside its prompt."""
        options = CompletionOptions(
            model=self.model,
            max_tokens=self.completion_tokens,
            temperature=self.temperature,
            seed=self.seed + number,
        )
        if not self.openai_only:  # ids tell how many tokens a part has
            options |= CompletionOptions(fork_ratio=self.fork_ratio, ignore_eos=True, return_token_ids=True)
        return options
