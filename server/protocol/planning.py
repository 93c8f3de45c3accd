"""Turn a completion request into engine requests, and check it against the served model."""

from collections.abc import Sequence
from dataclasses import dataclass

from thoughtbubbles.engine import Grammar, SamplingParams, most_streams
from thoughtbubbles.model import ForkBias, Selection, Tokenizer
from thoughtbubbles.server.core import EngineRequest, ServedModel
from thoughtbubbles.server.protocol.errors import bad_request, no_model, quoted
from thoughtbubbles.server.protocol.grammars import grammar_of, require_usable
from thoughtbubbles.server.protocol.requests import INT64, CompletionRequest
from thoughtbubbles.server.protocol.unsupported import check_supported
from thoughtbubbles.server.protocol.validation import above_maximum, below_minimum
from thoughtbubbles.server.protocol.vocabulary import check_ids, encode, token_id_keys

MAX_BEST_OF = 20
"""Most choices that are computed for each prompt, if fewer are returned."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A completion request that has been checked, and its engine requests."""

    request: CompletionRequest
    """The client's request."""
    prompts: Sequence[Sequence[int]]
    """Token ids of each prompt."""
    sequences: Sequence[EngineRequest]
    """`request.choices_per_prompt` engine requests for each prompt, those of one prompt together."""


def plan(completion_id: str, request: CompletionRequest, served: ServedModel) -> Plan:
    """Return the plan of `request`, checked against the model. Raises `ApiError` 400 or 404 for the first mistake."""
    check_supported(request)
    _check_names(request, served)
    _check_best_of(request)
    _check_choices(request, served.max_choices)
    _check_limits(request, served)
    prompts = _prompts(request, served)
    _check_sizes(request, prompts, served)
    _check_fork_bias(request, min(map(len, prompts)) + request.max_tokens, served)
    if (grammar := grammar_of(request)) is not None:
        require_usable(grammar, served.tokenizer)
    bias = token_id_keys("logit_bias", request.logit_bias, served.tokenizer)
    sequences = [
        EngineRequest(
            request_id=f"{completion_id}/{number}",
            prompt=prompts[number // request.choices_per_prompt],
            params=_params(request, bias, grammar, number % request.choices_per_prompt, served.tokenizer.vocab_size),
        )
        for number in range(len(prompts) * request.choices_per_prompt)
    ]
    return Plan(request=request, prompts=prompts, sequences=sequences)


def _check_names(request: CompletionRequest, served: ServedModel) -> None:
    if request.model not in {"", served.name}:
        raise no_model(request.model, served.name)
    if request.suffix is not None:
        message = "Unsupported parameter: 'suffix' is not supported with this model."
        raise bad_request(message, "unsupported_parameter", "suffix")
    if request.stream_options is not None and not request.stream:
        message = "Invalid 'stream_options': only allowed when 'stream' is true."
        raise bad_request(message, "invalid_value", "stream_options")


def _check_best_of(request: CompletionRequest) -> None:
    most = max(request.n, MAX_BEST_OF)
    if request.choices_per_prompt < request.n:
        raise below_minimum("best_of", request.n, request.choices_per_prompt)
    if request.choices_per_prompt > most:
        raise above_maximum("best_of", most, request.choices_per_prompt)
    if request.stream and request.choices_per_prompt > request.n:
        message = "Invalid 'best_of': which choices are best is known at the end only, so it does not stream."
        raise bad_request(message, "invalid_value", "best_of")


def _check_choices(request: CompletionRequest, most: int) -> None:
    prompts, each = len(request.prompts), request.choices_per_prompt
    if prompts * each <= most:
        return
    several = "best_of" if request.best_of is not None else "n"
    name, code = (several, "integer_above_max_value") if each > 1 else ("prompt", "array_above_max_length")
    made = f"{_counted(prompts, 'prompt')} with {_counted(each, 'choice')} each {'is' if prompts == 1 else 'are'}"
    message = (
        f"Invalid {name!r}: {made} {prompts * each} choices, but this server computes at most {most} for a"
        " request (max_choices)."
    )
    raise bad_request(message, code, name)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _check_limits(request: CompletionRequest, served: ServedModel) -> None:
    if request.fork_ratio is not None and request.fork_ratio > served.config.max_ratio:
        raise above_maximum("fork_ratio", float(served.config.max_ratio), request.fork_ratio)
    if request.min_tokens > request.max_tokens:
        raise above_maximum("min_tokens", request.max_tokens, request.min_tokens)
    check_ids("stop_token_ids", request.stop_token_ids, served.tokenizer)


def _prompts(request: CompletionRequest, served: ServedModel) -> Sequence[Sequence[int]]:
    several = len(request.prompts) > 1
    return [
        _prompt(f"prompt[{number}]" if several else "prompt", given, served.tokenizer)
        for number, given in enumerate(request.prompts)
    ]


def _prompt(name: str, given: str | Sequence[int], tokenizer: Tokenizer) -> Sequence[int]:
    """Return the prompt's token ids; the end-of-text token, which starts every text, if it is empty."""
    if isinstance(given, str):
        return encode(name, given, tokenizer) or [tokenizer.end_of_text]
    check_ids(name, given, tokenizer)
    return given


def _check_sizes(request: CompletionRequest, prompts: Sequence[Sequence[int]], served: ServedModel) -> None:
    longest, context = max(map(len, prompts)), served.max_model_len
    if longest + request.max_tokens > context:
        message = (  # clients recognise the words that OpenAI begins with
            f"This model's maximum context length is {context} tokens, but {longest + request.max_tokens} were"
            f" requested: {longest} in the prompt and {request.max_tokens} for the completion."
        )
        raise bad_request(message, "context_length_exceeded", "max_tokens" if longest < context else "prompt")
    _check_queue_limits(request, prompts, served)


def _check_fork_bias(request: CompletionRequest, tokens: int, served: ServedModel) -> None:
    """Refuse layers that do not fork, positions that are not below `tokens`, and two entries for the same forks."""
    seen: dict[tuple[int, int], int] = {}
    for number, each in enumerate(request.fork_bias):
        name, layers = f"fork_bias[{number}]", served.config.fork_layers
        if each.layer not in layers:
            forks = f"one of the fork layers {', '.join(map(str, layers))}" if layers else "a model with fork layers"
            message = f"Invalid '{name}.layer': expected {forks}, but got {quoted(str(each.layer))} instead."
            raise bad_request(message, "invalid_value", f"{name}.layer")
        if each.position >= tokens:
            raise above_maximum(f"{name}.position", tokens - 1, each.position)
        first = seen.setdefault((each.layer, each.position), number)
        if first != number:
            message = f"Invalid '{name}': fork_bias[{first}] has the same layer and position."
            raise bad_request(message, "invalid_value", name)


def _check_queue_limits(request: CompletionRequest, prompts: Sequence[Sequence[int]], served: ServedModel) -> None:
    """Refuse choices that together exceed the queue: the engine accepts all of a request or none."""
    if len(prompts) * request.choices_per_prompt == 1:
        return
    selection = Selection.of(served.config, request.fork_selection, request.fork_ratio)

    def needed(completion_tokens: int) -> int:
        """Return the streams of all choices, each with its prompt and this many tokens."""
        lengths = [len(ids) + completion_tokens for ids in prompts]
        return request.choices_per_prompt * sum(
            most_streams(served.config, selection, tokens)[-1] for tokens in lengths
        )

    message = None
    if (streams := needed(0)) > served.max_waiting_streams:
        message = f"need {streams} streams to wait, but this server's queue has {served.max_waiting_streams}"
    elif served.max_client_streams is not None and (streams := needed(request.max_tokens)) > served.max_client_streams:
        message = (
            f"may need {streams} streams with their completions, but this server's queue has"
            f" {served.max_client_streams} for one client (max_client_share)"
        )
    if message is not None:
        raise bad_request(f"Invalid 'prompt': its choices {message}.", "array_above_max_length", "prompt")


def _params(
    request: CompletionRequest, bias: dict[int, float], grammar: Grammar | None, choice: int, vocabulary: int
) -> SamplingParams:
    """Return the sampling parameters of one choice; `choice` counts the choices of its prompt from 0."""
    ranked = request.choices_per_prompt > request.n
    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=min(max(request.top_k, 0), vocabulary),
        min_p=request.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=bias,
        # `choice` counts within the prompt, so that other prompts of the request change nothing. int64 wraps.
        seed=None if request.seed is None else (request.seed + choice + INT64) % (2 * INT64) - INT64,
        stop=tuple(request.stop),
        stop_token_ids=tuple(request.stop_token_ids),
        include_stop=request.include_stop_str_in_output,
        min_tokens=request.min_tokens,
        ignore_eos=request.ignore_eos,
        grammar=grammar,
        logprobs=(request.logprobs or 0) if ranked else request.logprobs,
        prompt_logprobs=request.logprobs if request.echo else None,
        return_fork_counts=request.return_fork_counts,
        return_fork_scores=request.return_fork_scores,
        fork_bias=tuple(
            ForkBias(layer=each.layer, position=each.position, bias=each.bias, select=each.select)
            for each in request.fork_bias
        ),
        fork_ratio=request.fork_ratio,
        fork_selection=request.fork_selection,
    )
