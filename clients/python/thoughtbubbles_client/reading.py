"""Convert the server's JSON to results and errors. No I/O."""

import json
from collections.abc import Callable, Iterable, Mapping
from email.utils import parsedate_to_datetime
from itertools import zip_longest
from typing import Any, TypeVar

from thoughtbubbles_client.errors import ApiError, InvalidAnswerError, error_class
from thoughtbubbles_client.results import Choice, Completion, LoadedWeights, Model, Token, Usage

T = TypeVar("T")
Json = Mapping[str, Any]

MAX_QUOTED_LENGTH = 200
"""Most characters of an answer in another form that an error quotes."""


def read(data: bytes | str, make: Callable[[Any], T]) -> T:
    """Return what `make` returns for JSON. Raises `InvalidAnswerError` if it is not JSON, or `make` cannot read it."""
    try:
        return make(json.loads(data))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        text = data if isinstance(data, str) else data.decode(errors="replace")
        raise InvalidAnswerError(f"not an answer of this API ({error!r}): {_clipped(text)}") from error


def completion(answer: Json) -> Completion:
    """Return a completion or chat, whole or a part of a stream."""
    return Completion(
        id=answer["id"],
        model=answer["model"],
        choices=tuple(_choice(each) for each in answer["choices"]),
        usage=_usage(answer.get("usage")),
        created=answer.get("created"),
        system_fingerprint=answer.get("system_fingerprint"),
    )


def model(answer: Json) -> Model:
    """Return one entry of the list of models."""
    fork_layers = answer.get("fork_layers")
    return Model(
        id=answer["id"],
        owned_by=answer.get("owned_by"),
        created=answer.get("created"),
        max_model_len=answer.get("max_model_len"),
        fork_layers=None if fork_layers is None else tuple(fork_layers),
        block_size=answer.get("block_size"),
        max_block_size=answer.get("max_block_size"),
        parameters=answer.get("parameters"),
        weights_version=answer.get("weights_version"),
    )


def loaded_weights(answer: Json) -> LoadedWeights:
    """Return the answer to a load of weights."""
    return LoadedWeights(
        model=answer["model"],
        weights_version=answer["weights_version"],
        previous_weights_version=answer["previous_weights_version"],
        system_fingerprint=answer["system_fingerprint"],
        model_revision=answer["model_revision"],
    )


def api_error(body: bytes, status: int, headers: Mapping[str, str], now: float) -> ApiError:
    """Return the error of an answer. `now` is in seconds of Unix time, for a Retry-After that is a date."""
    try:
        detail = json.loads(body)["error"]
        detail = detail if isinstance(detail, dict) else {"message": str(detail)}
    except (ValueError, LookupError, TypeError):  # a proxy's page, or another server's form
        place = headers.get("location")
        redirect = f"redirected to {place}, which this client does not follow"
        detail = {"message": _clipped(body.decode(errors="replace") if place is None else redirect)}
    error = _error(detail, status)
    error.request_id = headers.get("x-request-id")
    error.retry_after = _seconds(headers.get("retry-after"), now)
    error.should_retry = {"true": True, "false": False}.get(headers.get("x-should-retry", ""))
    return error


def stream_error(event: Json) -> ApiError | None:
    """Return the error in an event of a stream; None if it has none."""
    detail = event.get("error")
    return None if detail is None else _error(detail if isinstance(detail, dict) else {"message": str(detail)})


def _error(detail: Json, status: int | None = None) -> ApiError:
    kind, param, message = detail.get("type"), detail.get("param"), str(detail.get("message", "no reason given"))
    code = None if detail.get("code") is None else str(detail["code"])  # some servers send a number
    return error_class(status, kind, code)(message, status=status, kind=kind, code=code, param=param)


def _choice(choice: Json) -> Choice:
    message = choice.get("message") or choice.get("delta") or {}
    return Choice(
        index=choice["index"],
        text=(choice["text"] if "text" in choice else message.get("content")) or "",
        tokens=tuple(_tokens(choice)),
        finish_reason=choice.get("finish_reason"),
        stop_reason=choice.get("stop_reason"),
    )


def _tokens(choice: Json) -> Iterable[Token]:
    """Yield the tokens of a choice: log-probabilities, fork counts and ids are columns of the same length."""
    scores = list(_scores(choice.get("logprobs") or {}))
    fork_counts = choice.get("fork_counts") or []
    fork_scores = [tuple(map(tuple, each)) for each in choice.get("fork_scores") or []]
    ids = choice.get("token_ids") or []
    length = max(len(scores), len(fork_counts), len(fork_scores), len(ids))
    if length > len(ids):  # with echo the other columns begin with the prompt
        ids = [*(choice.get("prompt_token_ids") or []), *ids]
    for token_id, fork_count, own, score in zip_longest(ids, fork_counts, fork_scores, scores):
        yield Token(id=token_id, fork_count=fork_count, fork_scores=own, **(score or {}))


def _scores(logprobs: Json) -> Iterable[dict[str, Any]]:
    """Yield each token's log-probability fields, in the form of a completion (four columns) or a chat (one)."""
    columns = ("tokens", "text_offset", "token_logprobs", "top_logprobs")
    for text, offset, logprob, top in zip_longest(*(logprobs.get(column) or [] for column in columns)):
        yield {"text": text, "offset": offset, "logprob": logprob, "top_logprobs": top}
    for each in logprobs.get("content") or []:
        top = {likely["token"]: likely["logprob"] for likely in each.get("top_logprobs") or []}
        yield {"text": each["token"], "logprob": each["logprob"], "top_logprobs": top}


def _usage(usage: Json | None) -> Usage | None:
    if usage is None:
        return None
    return Usage(
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage.get("completion_tokens", 0),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        stream_tokens=usage.get("stream_tokens"),
    )


def _seconds(retry_after: str | None, now: float) -> float | None:
    """Return the seconds of a Retry-After header, which may be seconds or a date; None if it is neither."""
    try:
        return max(0.0, float(retry_after or ""))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after or "").timestamp() - now)
    except ValueError:
        return None


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_QUOTED_LENGTH else text[: MAX_QUOTED_LENGTH - 1] + "…"
