"""What a server answers, as values. A stream gives the same `Completion`s, each with what is new in it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Token:
    """One token of a choice, of its prompt if `echo` was asked. What was not asked for, or not told, is None."""

    fork_count: int | None = None
    """Residual streams that the model gave this token, counted after its last fork layer: 1 is the original alone."""
    id: int | None = None
    """Its number in the vocabulary; with `return_token_ids`."""
    text: str | None = None
    r"""What it spells, a part of a character as `bytes:\xe2\x80`; with `logprobs`."""
    offset: int | None = None
    """Where it begins in the choice's text, in characters; with `logprobs`, but not in a chat."""
    logprob: float | None = None
    """Its log-probability in the raw distribution, in nats; with `logprobs`."""
    top_logprobs: Mapping[str, float] | None = None
    """The most probable tokens there and their log-probabilities; with `logprobs`."""

    def __repr__(self) -> str:
        known = (f"{name}={value!r}" for name, value in asdict(self).items() if value is not None)
        return f"Token({', '.join(known)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One continuation of one prompt, or what a stream adds to it."""

    index: int
    """Its place: with `n` choices for each of several prompts, those of one prompt stand together."""
    text: str
    """What was written; in a chat what the assistant says."""
    tokens: tuple[Token, ...] = ()
    """Its tokens; empty where the server tells nothing of them."""
    finish_reason: str | None = None
    """`stop` or `length`; None in a stream until the choice ends."""
    stop_reason: str | int | None = None
    """The stop string or token id that ended it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a request took, in tokens."""

    prompt_tokens: int
    """Each prompt counted once."""
    completion_tokens: int
    """Of all choices."""
    cached_tokens: int | None = None
    """Of the prompts, those that needed no computing."""
    stream_tokens: int | None = None
    """Residual streams computed behind the last fork layer, cached ones left out: tokens and their forks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An answer, whole or one part of a stream."""

    id: str
    """What `cancel` takes; the same in every part of a stream."""
    model: str
    """The name of the model that wrote it."""
    choices: tuple[Choice, ...]
    """In order of their index; in a stream those that go on, and none in its last part, which has the usage."""
    usage: Usage | None = None
    """What it took; in a stream in the last part."""
    created: int | None = None
    """When, in seconds of Unix time."""
    system_fingerprint: str | None = None
    """What runs there."""

    @property
    def text(self) -> str:
        """The first choice's text; empty in a part without choices."""
        return self.choices[0].text if self.choices else ""

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The first choice's tokens; none in a part without choices."""
        return self.choices[0].tokens if self.choices else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that a server offers. What only Thoughtbubbles servers tell is None elsewhere."""

    id: str
    """What the option `model` takes."""
    owned_by: str | None = None
    """Whose it is."""
    created: int | None = None
    """When, in seconds of Unix time."""
    max_model_len: int | None = None
    """Most tokens of prompt and completion."""
    fork_layers: tuple[int, ...] | None = None
    """The layers before which tokens may fork; `fork_ratio` goes up to 2 to the number of them."""
    block_size: int | None = None
    """L, the tokens of a training block."""
    max_block_size: int | None = None
    """κ, the streams that its budget allowed a training block: κ/L is what `fork_ratio` is if not given."""
    parameters: int | None = None
    """How many it has."""
