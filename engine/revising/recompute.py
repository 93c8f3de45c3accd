"""Steps of requests under the rules that revise, `dynamic` and `fixed`, and the states kept between them.

A state only saves time: without it the whole sequence is computed again. So the memory of states can be limited.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from weakref import WeakKeyDictionary

from thoughtbubbles.engine.portable.layers import PackedModel
from thoughtbubbles.engine.prompt_report import Scores
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.revising.forward import Revised, RevisingForward
from thoughtbubbles.engine.revising.state import RevisableState
from thoughtbubbles.engine.scoring import report
from thoughtbubbles.model import Selection, Thoughtbubbles


class Recompute:
    """Computes requests from their states, which live until the requests end and take at most `limit_bytes` together.

    A request without a state has its whole sequence computed for every token, one such request after the other.
    """

    def __init__(
        self, model: Thoughtbubbles, packed: Callable[[], PackedModel], *, vocabulary: int, limit_bytes: int
    ) -> None:
        """`packed` returns the model's layers; it is called for the first request."""
        self.model = model
        self.vocabulary = vocabulary
        self.limit_bytes = limit_bytes
        self._packed = packed
        self._kept: WeakKeyDictionary[Request, RevisableState] = WeakKeyDictionary()  # drops finished requests

    @cached_property
    def _forward(self) -> RevisingForward:
        return RevisingForward(self.model, self._packed())

    @property
    def kept_bytes(self) -> int:
        """Bytes of the kept states."""
        return sum(state.nbytes for state in self._kept.values())

    def step(self, requests: Sequence[Request]) -> list[Revised]:
        """Compute the tokens of each request that its state lacks."""
        revised = {request: self._alone(request) for request in requests if not self._keep(request)}
        if kept := [request for request in requests if request not in revised]:
            states = [self._kept[request] for request in kept]
            together = self._forward.extend(states, [request.tokens for request in kept])
            revised.update(zip(kept, together, strict=True))
        return [revised[request] for request in requests]

    def score(self, prompt: Sequence[int], selection: Selection, top: int) -> Scores:
        """Return the log-probabilities of the prompt's second and later tokens, each given the prefix before it alone.

        That is the distribution that the token would be drawn from; a later token may change earlier selections.
        """
        scores, state = Scores(), self._open(selection, len(prompt))
        for length in range(1, len(prompt)):
            [revised] = self._forward.extend([state], [prompt[:length]])
            scores.extend(report(revised.logits[None], prompt[length : length + 1], top, vocabulary=self.vocabulary))
        return scores

    def _keep(self, request: Request) -> bool:
        """Return whether the request has a kept state. Keep a new one if it fits."""
        if request not in self._kept:
            state = self._open(request.selection, request.max_tokens)
            if self.kept_bytes + state.nbytes <= self.limit_bytes:
                self._kept[request] = state
        return request in self._kept

    def _alone(self, request: Request) -> Revised:
        state = self._open(request.selection, request.num_tokens)
        return self._forward.extend([state], [request.tokens])[0]

    def _open(self, selection: Selection, max_tokens: int) -> RevisableState:
        return RevisableState(self.model.config, selection, max_tokens, self.model.transformer.wte.weight)
