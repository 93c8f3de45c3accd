"""The wire form of an answer in a conversation: OpenAI's chat.completion, whole and in chunks."""

from collections.abc import Sequence

from thoughtbubbles.server.bridge.loading import ServedModel
from thoughtbubbles.server.protocol.choices import Delta
from thoughtbubbles.server.protocol.completions import Completion
from thoughtbubbles.server.protocol.logprobs import Token, finite
from thoughtbubbles.server.protocol.planning import Plan
from thoughtbubbles.server.protocol.requests import Json


class ChatCompletion(Completion):
    """A completion told as a message of the assistant."""

    WHOLE = "chat.completion"
    CHUNK = "chat.completion.chunk"

    def __init__(self, name: str, plan: Plan, served: ServedModel) -> None:
        super().__init__(name, plan, served)
        self._begun: set[int] = set()  # choices whose role has been told

    def _whole_content(self, whole: Delta) -> Json:
        message = {"role": "assistant", "content": whole.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(whole.tokens)}

    def _chunk_content(self, index: int, delta: Delta) -> Json:
        first = index not in self._begun
        self._begun.add(index)
        role = {"role": "assistant"} if first else {}
        content = {"content": delta.text} if first or delta.text else {}
        return {"delta": role | content, "logprobs": self._logprobs(delta.tokens)}

    def _logprobs(self, tokens: Sequence[Token]) -> Json | None:
        if self._request.logprobs is None:
            return None
        return {"content": [self._token_object(token) for token in tokens], "refusal": None}

    def _token_object(self, token: Token) -> Json:
        assert token.logprob is not None, "log-probabilities were asked for"
        top = [self._likely(token_id, logprob) for token_id, logprob in token.top_logprobs or ()]
        return self._likely(token.token_id, token.logprob) | {"top_logprobs": top}

    def _likely(self, token_id: int, logprob: float) -> Json:
        name, spelling = self._print(token_id), self._token_bytes(token_id)
        return {"token": name, "logprob": finite(logprob), "bytes": list(spelling)}
