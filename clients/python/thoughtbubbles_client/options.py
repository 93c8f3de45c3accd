"""The options of completions and chats, as keyword arguments. None means not given."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Required, TypedDict

import httpx

Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""A text, its token ids, or several of either."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    """The speaker's role."""
    content: str
    """The message's text."""


class ForkBias(TypedDict, total=False):
    """An intervention in the forks that one fork layer makes of one token's streams."""

    layer: Required[int]
    """The fork layer, counted from 0; `Model.fork_layers` has them."""
    position: Required[int]
    """The token of prompt and completion, counted from 0."""
    bias: float
    """Added to the fork logit of each of the token's streams, from -100 to 100; by default 0."""
    select: Literal["by_rule", "always", "never"]
    """Whether the fork copies survive: as the selection rule says (the default), always or never."""


class StructuredOutputs(TypedDict, total=False):
    """What a text must match, as newer servers of vLLM take it; one of these."""

    json: Mapping[str, Any] | str
    """A JSON schema."""
    regex: str
    """A regular expression."""
    choice: Sequence[str]
    """Texts to choose from."""
    grammar: str
    """A grammar."""
    json_object: bool
    """A JSON object."""


class GenerationOptions(TypedDict, total=False):
    """Options of completions and chats."""

    timeout: float | httpx.Timeout | None
    """Replaces the client's timeout for this request: the longest wait for a byte, in seconds; inf: no limit."""
    model: str | None
    """The served model's name; a Thoughtbubbles server needs none."""
    max_tokens: int | None
    """Most tokens generated for each choice."""
    temperature: float | None
    """0 is greedy, 1 is the model's own distribution."""
    top_p: float | None
    """Sample from the smallest set of tokens with at least this total probability."""
    n: int | None
    """Choices for each prompt."""
    seed: int | None
    """The same request with the same seed gives the same tokens."""
    stop: str | Sequence[str] | None
    """Strings that end a choice; they are not returned."""
    presence_penalty: float | None
    """Subtracted from the logit of every token that has been generated."""
    frequency_penalty: float | None
    """Subtracted from the logit of a token each time it has been generated."""
    logit_bias: Mapping[str, float] | None
    """Added to the logits of these token ids, written as strings."""
    user: str | None
    """Ignored by Thoughtbubbles servers."""
    top_k: int | None
    """Sample from this many most probable tokens."""
    min_p: float | None
    """Sample from tokens whose probability is at least this share of the most probable token's."""
    repetition_penalty: float | None
    """Above 1, tokens of prompt and completion become less likely."""
    min_tokens: int | None
    """Generate at least this many tokens."""
    ignore_eos: bool | None
    """Continue after the end-of-text token."""
    stop_token_ids: Sequence[int] | None
    """Token ids that end a choice."""
    include_stop_str_in_output: bool | None
    """Return the stop string, too."""
    return_token_ids: bool | None
    """Return each token's id."""
    response_format: Mapping[str, Any] | None
    """`{"type": "json_object"}`, or `{"type": "json_schema", "json_schema": {"name": …, "schema": …}}`."""
    guided_json: Mapping[str, Any] | str | bool | None
    """A JSON schema under which the text must be valid."""
    guided_regex: str | None
    """A regular expression that must match the whole text."""
    guided_choice: Sequence[str] | None
    """Texts of which one must be written."""
    guided_grammar: str | None
    """A grammar that the text must match, in Lark's notation or in EBNF."""
    structured_outputs: StructuredOutputs | None
    """The same, as newer servers of vLLM take it."""
    fork_ratio: float | None
    """Residual streams per token that the fork budget allows, from 1 (no forks): how much the model thinks."""
    fork_selection: Literal["causal", "dynamic", "fixed"] | None
    """The rule that selects surviving streams; `dynamic` and `fixed` are slower than `causal`."""
    return_fork_counts: bool | None
    """Return each token's number of residual streams; the default is the client's `fork_counts`."""
    fork_bias: Sequence[ForkBias] | None
    """Shift, force or forbid the forks of single tokens; at most 256."""
    return_fork_scores: bool | None
    """Return P of each token's streams after every fork layer."""


class CompletionOptions(GenerationOptions, total=False):
    """Options of completions."""

    best_of: int | None
    """Generate this many choices for each prompt, and return the n of highest mean log-probability; not in a stream."""
    logprobs: int | None
    """Return log-probabilities of each token and of this many most probable ones; 0 means of each token only."""
    echo: bool | None
    """Return the prompt before the completion; with `logprobs` and `max_tokens=0` the server only scores it."""
    suffix: str | None
    """Text after the completion; Thoughtbubbles servers refuse it."""


class ChatOptions(GenerationOptions, total=False):
    """Options of chats."""

    max_completion_tokens: int | None
    """The newer name of `max_tokens`."""
    logprobs: bool | None
    """Return log-probabilities of the tokens."""
    top_logprobs: int | None
    """Return log-probabilities of this many most probable tokens at each position; only with `logprobs`."""
