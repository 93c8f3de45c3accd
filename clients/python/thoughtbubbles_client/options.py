"""What may be asked of a completion or a chat, as keyword arguments. None is the same as not given."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

import httpx

Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""A text, its token ids, or several of either."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    """Who speaks."""
    content: str
    """What is said."""


class GenerationOptions(TypedDict, total=False):
    """What completions and chats have in common."""

    timeout: float | httpx.Timeout | None
    """For this request alone, as the client's own: seconds without a byte after which to give up."""
    model: str | None
    """The served model's name; a Thoughtbubbles server needs none."""
    max_tokens: int | None
    """Most tokens made for each choice."""
    temperature: float | None
    """0 is greedy, 1 the model's own distribution."""
    top_p: float | None
    """Sample from the fewest tokens that hold this much probability."""
    n: int | None
    """Choices for each prompt."""
    seed: int | None
    """The same request with the same seed gives the same tokens."""
    stop: str | Sequence[str] | None
    """Strings that end a choice; they are not returned."""
    presence_penalty: float | None
    """Subtracted once from the logit of every token that has been made."""
    frequency_penalty: float | None
    """Subtracted as often as the token has been made."""
    logit_bias: Mapping[str, float] | None
    """Added to the logits of these token ids, which are written as strings."""
    user: str | None
    """Of no consequence to a Thoughtbubbles server."""
    top_k: int | None
    """Sample from this many tokens."""
    min_p: float | None
    """Sample from tokens at least this probable, measured against the most probable one."""
    repetition_penalty: float | None
    """Above 1, tokens of the prompt and the completion become less likely."""
    min_tokens: int | None
    """No end before this many tokens."""
    ignore_eos: bool | None
    """Go on after end-of-text."""
    stop_token_ids: Sequence[int] | None
    """Token ids that end a choice."""
    include_stop_str_in_output: bool | None
    """Return the stop string too."""
    return_token_ids: bool | None
    """Tell each token's id."""
    fork_ratio: float | None
    """Residual streams per token that the budget allows, from 1 (no forks): how much the model thinks."""
    fork_selection: Literal["causal", "dynamic", "fixed"] | None
    """The rule that picks surviving streams; all but `causal` recompute everything for every token."""
    return_fork_counts: bool | None
    """Tell each token's residual streams; the client asks for them unless it was made with `fork_counts=False`."""


class CompletionOptions(GenerationOptions, total=False):
    """What only completions have."""

    best_of: int | None
    """Choices made for each prompt, of which the n of highest mean log-probability are returned; not in a stream."""
    logprobs: int | None
    """Log-probabilities of the tokens and of this many others at each place; 0 is those of the tokens alone."""
    echo: bool | None
    """Return the prompt before the completion; with `logprobs` and `max_tokens=0` it is scored."""
    suffix: str | None
    """What comes after the completion; Thoughtbubbles models write forwards and refuse it."""


class ChatOptions(GenerationOptions, total=False):
    """What only chats have."""

    max_completion_tokens: int | None
    """The newer name of `max_tokens`."""
    logprobs: bool | None
    """Log-probabilities of the tokens."""
    top_logprobs: int | None
    """Of this many others at each place; only with `logprobs`."""
