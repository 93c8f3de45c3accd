"""The answers of a server. A stream returns `Completion`s, too, each with what is new."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Token:
    """One token of a choice, with `echo` of its prompt, too. Fields that were not requested or not sent are None."""

    fork_count: int | None = None
    """Number of the token's residual streams after the last fork layer; 1 means that it did not fork."""
    fork_scores: tuple[tuple[float, ...], ...] | None = None
    """For each fork layer P of the token's streams after it: forks first, original last; with `return_fork_scores`."""
    id: int | None = None
    """The token's id in the vocabulary; with `return_token_ids`."""
    text: str | None = None
    r"""Its text; a part of a character is written as `bytes:\xe2\x80`; with `logprobs`."""
    offset: int | None = None
    """Where it starts in the choice's text, in characters; with `logprobs`, but not in a chat."""
    logprob: float | None = None
    """Its log-probability in the raw distribution, in nats; with `logprobs`."""
    top_logprobs: Mapping[str, float] | None = None
    """The most probable tokens at its position and their log-probabilities; with `logprobs`."""

    def __repr__(self) -> str:
        known = (f"{name}={value!r}" for name, value in asdict(self).items() if value is not None)
        return f"Token({', '.join(known)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One continuation of one prompt, or what a stream adds to it."""

    index: int
    """Its number in the answer. With several prompts, the choices of one prompt are together."""
    text: str
    """The generated text; in a chat the assistant's message."""
    tokens: tuple[Token, ...] = ()
    """Its tokens; empty if the server sends nothing about them."""
    finish_reason: str | None = None
    """`stop` or `length`; None in a stream until the choice ends."""
    stop_reason: str | int | None = None
    """The stop string or token id that ended it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The tokens of a request."""

    prompt_tokens: int
    """Tokens of the prompts, each counted once."""
    completion_tokens: int
    """Tokens of all choices."""
    cached_tokens: int | None = None
    """Prompt tokens that the server had in its cache."""
    stream_tokens: int | None = None
    """Residual streams (tokens and their forks) computed after the last fork layer, without cached ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An answer, whole or one part of a stream."""

    id: str
    """The completion's id, which `cancel` takes; the same in every part of a stream."""
    model: str
    """The name of the model."""
    choices: tuple[Choice, ...]
    """In order of their index. A part of a stream has those that continue; the last part has none, but the usage."""
    usage: Usage | None = None
    """The tokens of the request; in a stream, in the last part."""
    created: int | None = None
    """When it was created, in seconds of Unix time."""
    system_fingerprint: str | None = None
    """The server's version, and behind it the version of the weights."""

    @property
    def text(self) -> str:
        """The first choice's text; empty in a part without choices."""
        return self.choices[0].text if self.choices else ""

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The first choice's tokens; empty in a part without choices."""
        return self.choices[0].tokens if self.choices else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model of a server. Fields that other servers do not send are None."""

    id: str
    """The model's name, which the option `model` takes."""
    owned_by: str | None = None
    """The owner of the model."""
    created: int | None = None
    """When it was created, in seconds of Unix time."""
    max_model_len: int | None = None
    """Most tokens of prompt and completion together."""
    fork_layers: tuple[int, ...] | None = None
    """The layers before which tokens may fork. The largest `fork_ratio` is 2 to the power of their number."""
    block_size: int | None = None
    """L, the tokens of a training block."""
    max_block_size: int | None = None
    """κ, the fork budget of a training block; the default `fork_ratio` is κ/L."""
    parameters: int | None = None
    """Number of the model's parameters."""
    weights_version: str | None = None
    """A digest of its weights: the same weights in the same precision have the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWeights:
    """The weights that a server computes with since `load_weights`."""

    model: str
    """The name of the model, which stays."""
    weights_version: str
    """A digest of the weights."""
    previous_weights_version: str
    """That of the weights from before."""
    system_fingerprint: str
    """The fingerprint of answers that these weights compute."""
    model_revision: str | None = None
    """The commit of a checkpoint from a hub."""
