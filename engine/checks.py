"""Validation of a request against the model that serves it."""

from collections.abc import Iterable, Sequence

from thoughtbubbles.engine.errors import InvalidRequest
from thoughtbubbles.engine.sampling_params import SamplingParams
from thoughtbubbles.model import ModelConfig, check_fork_biases


def check_request(
    prompt: Sequence[int], params: SamplingParams, config: ModelConfig, vocab_size: int, max_model_len: int
) -> None:
    """Raise `InvalidRequest` for token ids outside the vocabulary, a length over the context, or too high a ratio."""
    if not prompt:
        raise InvalidRequest("prompt must have at least one token", param="prompt")
    _check_ids("prompt", prompt, vocab_size)
    _check_ids("logit_bias", params.logit_bias, vocab_size)
    _check_ids("stop_token_ids", params.stop_token_ids, vocab_size)
    if params.min_tokens and len({*params.stop_token_ids}) >= vocab_size - 1:  # end-of-text is banned beside them
        raise InvalidRequest("stop_token_ids must leave a token to draw until min_tokens is reached",
                             param="stop_token_ids")  # fmt: skip
    if len(prompt) + params.max_tokens > max_model_len:
        raise InvalidRequest(
            f"the context is {max_model_len} tokens, and {len(prompt)} of the prompt with {params.max_tokens} of the "
            "completion are more",
            param="max_tokens",
            code="context_length_exceeded",
        )
    _check_fork_bias(params, len(prompt) + params.max_tokens, config)
    if params.fork_ratio is not None and params.fork_ratio > config.max_ratio:
        raise InvalidRequest(
            f"fork_ratio must be at most {config.max_ratio}, which keeps every fork", param="fork_ratio"
        )


def _check_fork_bias(params: SamplingParams, tokens: int, config: ModelConfig) -> None:
    try:
        check_fork_biases(params.fork_bias, config)
    except ValueError as error:
        raise InvalidRequest(f"fork_bias: {error}", param="fork_bias") from error
    for i, each in enumerate(params.fork_bias):
        if each.position >= tokens:
            raise InvalidRequest(
                f"fork_bias[{i}].position must be below {tokens}, the tokens of prompt and completion, not"
                f" {each.position}",
                param="fork_bias",
            )


def _check_ids(param: str, ids: Iterable[int], vocab_size: int) -> None:
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            message = f"{param} has token id {token_id}, and the largest is {vocab_size - 1}"
            raise InvalidRequest(message, param=param, code="invalid_token_id")
