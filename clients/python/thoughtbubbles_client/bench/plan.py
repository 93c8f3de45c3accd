"""The plan of a measurement."""

from dataclasses import dataclass

from thoughtbubbles_client.options import CompletionOptions


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One measurement. Raises `ValueError` that names a wrong setting."""

    concurrency: int = 8
    """Number of concurrent requests."""
    requests: int | None = 64
    """Number of requests; None: as many as `seconds` allow."""
    seconds: float | None = None
    """How long new requests are sent; running ones then finish. None: until `requests` are sent."""
    prompt_tokens: int = 64
    """Tokens of each prompt."""
    completion_tokens: int = 64
    """Tokens of each completion."""
    temperature: float = 1.0
    """0 is greedy."""
    fork_ratio: float | None = None
    """Residual streams per token that the fork budget allows; None: the server's default."""
    model: str | None = None
    """The model's name; None: the server's default."""
    openai_only: bool = False
    """Use only OpenAI's API: prompts are counted in words, and completions may be shorter."""
    seed: int = 0
    """Selects prompts and samples. With the seed of an earlier run a server may have the prompts cached."""

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
        """Return the options of the request `number`."""
        options = CompletionOptions(
            model=self.model,
            max_tokens=self.completion_tokens,
            temperature=self.temperature,
            seed=self.seed + number,
        )
        if not self.openai_only:  # ids show how many tokens a part has
            options |= CompletionOptions(fork_ratio=self.fork_ratio, ignore_eos=True, return_token_ids=True)
        return options
