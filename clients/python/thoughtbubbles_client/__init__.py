"""A client of Thoughtbubbles servers, and of others that speak OpenAI's completions.

    from thoughtbubbles_client import Client

    with Client("http://127.0.0.1:8000") as client:
        print(client.complete("The river", max_tokens=32, fork_ratio=1.5).text)

`Client` and `AsyncClient` have the same methods. `options` lists their options, `results` what they return, `errors`
what they raise.
"""

from thoughtbubbles_client.async_client import AsyncClient
from thoughtbubbles_client.client import Client
from thoughtbubbles_client.errors import (
    ApiError,
    BadRequestError,
    CompletionCancelledError,
    ConflictError,
    ContentTooLargeError,
    ContextLengthError,
    DisconnectedError,
    EngineFailedError,
    InvalidAnswerError,
    ModelNotFoundError,
    NoAnswerError,
    NotFoundError,
    RequestTimeoutError,
    ServerError,
    ServiceUnavailableError,
    ThoughtbubblesError,
    TimedOutError,
    TooManyRequestsError,
    UnauthorizedError,
    UnreachableError,
)
from thoughtbubbles_client.options import ChatOptions, CompletionOptions, ForkBias, Message, Prompt
from thoughtbubbles_client.results import Choice, Completion, LoadedWeights, Model, Token, Usage
from thoughtbubbles_client.retry import RetryPolicy
from thoughtbubbles_client.streams import AsyncCompletionStream, CompletionStream
from thoughtbubbles_client.version import __version__

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncCompletionStream",
    "BadRequestError",
    "ChatOptions",
    "Choice",
    "Client",
    "Completion",
    "CompletionCancelledError",
    "CompletionOptions",
    "CompletionStream",
    "ConflictError",
    "ContentTooLargeError",
    "ContextLengthError",
    "DisconnectedError",
    "EngineFailedError",
    "ForkBias",
    "InvalidAnswerError",
    "LoadedWeights",
    "Message",
    "Model",
    "ModelNotFoundError",
    "NoAnswerError",
    "NotFoundError",
    "Prompt",
    "RequestTimeoutError",
    "RetryPolicy",
    "ServerError",
    "ServiceUnavailableError",
    "ThoughtbubblesError",
    "TimedOutError",
    "Token",
    "TooManyRequestsError",
    "UnauthorizedError",
    "UnreachableError",
    "Usage",
    "__version__",
]
