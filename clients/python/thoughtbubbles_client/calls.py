"""The request of each method, and how its answer is read; shared by both clients."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from thoughtbubbles_client import reading
from thoughtbubbles_client.options import ChatOptions, CompletionOptions, Message, Prompt
from thoughtbubbles_client.results import Completion, LoadedWeights, Model
from thoughtbubbles_client.transport import authorization

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request, and how to read its answer."""

    method: str
    """The HTTP method."""
    path: str
    """The path below the server's address."""
    read: Callable[[Any], T]
    """Converts the answer's JSON."""
    body: Mapping[str, object] | None = None
    """The body, sent as JSON."""
    streamed: bool = False
    """Whether the answer is a stream of server-sent events."""
    timeout: float | httpx.Timeout | None = None
    """Replaces the client's timeout."""
    headers: Mapping[str, str] | None = None
    """Replaces headers of the client."""


def complete(
    prompt: Prompt, options: CompletionOptions, *, fork_counts: bool, streamed: bool = False
) -> Call[Completion]:
    """Return the call for a completion. `fork_counts` is the default of `return_fork_counts`."""
    body = _body({"prompt": prompt}, options, CompletionOptions, fork_counts=fork_counts, streamed=streamed)
    return _generate("/v1/completions", body)


def chat(
    messages: Sequence[Message], options: ChatOptions, *, fork_counts: bool, streamed: bool = False
) -> Call[Completion]:
    """Return the call for an answer in a conversation. `fork_counts` is the default of `return_fork_counts`."""
    body = _body({"messages": messages}, options, ChatOptions, fork_counts=fork_counts, streamed=streamed)
    return _generate("/v1/chat/completions", body)


def cancel(completion_id: str) -> Call[None]:
    """Return the call that ends a running completion or chat."""
    path = f"/v1/completions/{quote(completion_id, safe='')}/cancel"
    return Call(method="POST", path=path, read=lambda _answer: None)


def tokenize(text: str) -> Call[list[int]]:
    """Return the call for the token ids of a text."""
    return Call(method="POST", path="/tokenize", body={"prompt": text}, read=lambda answer: list(answer["tokens"]))


def detokenize(token_ids: Sequence[int]) -> Call[str]:
    """Return the call for the text of token ids."""
    body = {"tokens": list(token_ids)}
    return Call(method="POST", path="/detokenize", body=body, read=lambda answer: str(answer["prompt"]))


def models() -> Call[list[Model]]:
    """Return the call for the models of the server."""
    return Call(method="GET", path="/v1/models", read=lambda answer: [reading.model(each) for each in answer["data"]])


def model(model_id: str) -> Call[Model]:
    """Return the call for one model."""
    return Call(method="GET", path=f"/v1/models/{quote(model_id, safe='')}", read=reading.model)


def load_weights(checkpoint: str | PathLike[str], admin_key: str) -> Call[LoadedWeights]:
    """Return the call that replaces the weights. Raises `ValueError` for a wrong `admin_key`."""
    return Call(
        method="POST", path="/admin/load", body={"checkpoint": fspath(checkpoint)}, read=reading.loaded_weights,
        headers=authorization(admin_key, "admin_key"),
    )  # fmt: skip


def _generate(path: str, body: dict[str, Any]) -> Call[Completion]:
    timeout = body.pop("timeout", None)
    return Call(
        method="POST", path=path, body=body, read=reading.completion, streamed="stream" in body, timeout=timeout
    )


def _body(
    fields: Mapping[str, object], options: Mapping[str, Any], known: type, *, fork_counts: bool, streamed: bool
) -> dict[str, Any]:
    """Return the body, with `timeout` beside it. Raises `TypeError` for an unknown option."""
    unknown = options.keys() - known.__annotations__.keys()
    if unknown:
        raise TypeError(f"unexpected keyword arguments: {', '.join(sorted(unknown))}")
    defaults = {"return_fork_counts": True} if fork_counts else {}
    streaming = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
    return {name: value for name, value in {**fields, **defaults, **options, **streaming}.items() if value is not None}
