"""The wire form of an answer in a conversation: OpenAI's chat.completion, whole and in chunks."""

from collections.abc import Sequence

from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.protocol.choices import Delta
from thoughtbubbles.server.protocol.completions import Completion
from thoughtbubbles.server.protocol.logprobs import Token, finite
from thoughtbubbles.server.protocol.planning import Plan
from thoughtbubbles.server.protocol.requests import Json


class ChatCompletion(Completion):
    """A completion in the form of an assistant's message."""

    WHOLE = "chat.completion"
    CHUNK = "chat.completion.chunk"

    def __init__(self, completion_id: str, plan: Plan, served: ServedModel) -> None:
        super().__init__(completion_id, plan, served)
        self._started: set[int] = set()  # choices whose role has been sent

    def _whole_content(self, whole: Delta) -> Json:
        message = {"role": "assistant", "content": whole.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(whole.tokens)}

    def _chunk_content(self, index: int, delta: Delta) -> Json:
        first = index not in self._started
        self._started.add(index)
        role = {"role": "assistant"} if first else {}
        content = {"content": delta.text} if first or delta.text else {}
        return {"delta": role | content, "logprobs": self._logprobs(delta.tokens)}

    def _logprobs(self, tokens: Sequence[Token]) -> Json | None:
        if self._request.logprobs is None:
            return None
        return {"content": [self._token_object(token) for token in tokens], "refusal": None}

    def _token_object(self, token: Token) -> Json:
        assert token.logprob is not None, "the request has logprobs"
        top = [self._logprob_object(token_id, logprob) for token_id, logprob in token.top_logprobs or ()]
        return self._logprob_object(token.token_id, token.logprob) | {"top_logprobs": top}

    def _logprob_object(self, token_id: int, logprob: float) -> Json:
        return {
            "token": self._print(token_id), "logprob": finite(logprob), "bytes": list(self._token_bytes(token_id))
        }  # fmt: skip
