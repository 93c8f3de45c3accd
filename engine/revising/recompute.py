"""Requests under the rules that revise, `dynamic` and `fixed`: whose state is kept from token to token.

A state is only ever a shortcut: without it the whole sequence is computed again. So their memory can be bounded.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from thoughtbubbles.engine.portable.layers import PackedModel
from thoughtbubbles.engine.prompt_report import Scores
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.revising.forward import Revised, RevisingForward
from thoughtbubbles.engine.revising.state import RevisableState
from thoughtbubbles.engine.scoring import report
from thoughtbubbles.model import Selection, Thoughtbubbles


class Recompute:
    """Runs requests, each on from its state: kept until the request ends, while all together take `limit_bytes`.

    A request that has no room computes its whole sequence for every token, one such request after the other.
    """

    def __init__(self, model: Thoughtbubbles, packed: PackedModel, *, vocabulary: int, limit_bytes: int) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.limit_bytes = limit_bytes
        self._forward = RevisingForward(model, packed)
        self._kept: WeakKeyDictionary[Request, RevisableState] = WeakKeyDictionary()  # forgets a request that is gone

    @property
    def kept_bytes(self) -> int:
        """Bytes of the states that are kept."""
        return sum(state.nbytes for state in self._kept.values())

    def step(self, requests: Sequence[Request]) -> list[Revised]:
        """Compute the tokens that each request has and its state has not."""
        revised = {request: self._alone(request) for request in requests if not self._keep(request)}
        if kept := [request for request in requests if request not in revised]:
            states = [self._kept[request] for request in kept]
            together = self._forward.extend(states, [request.tokens for request in kept])
            revised.update(zip(kept, together, strict=True))
        return [revised[request] for request in requests]

    def score(self, prompt: Sequence[int], selection: Selection, top: int) -> Scores:
        """The log-probabilities of the prompt's second and later tokens, each from the prefix before it alone: what it
        would have been drawn from, since a later token may change what these rules chose before.
        """
        scores, state = Scores(), self._open(selection, len(prompt))
        for length in range(1, len(prompt)):
            [revised] = self._forward.extend([state], [prompt[:length]])
            scores.extend(report(revised.logits[None], prompt[length : length + 1], top, vocabulary=self.vocabulary))
        return scores

    def _keep(self, request: Request) -> bool:
        """Whether the state of a request is kept: it was before, or it fits now."""
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
