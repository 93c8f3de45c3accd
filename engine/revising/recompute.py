"""Steps of requests without pages, and the states kept between them.

A state only saves time: without it the whole sequence is computed again. So the memory of states can be limited.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from thoughtbubbles.engine.prompt_report import Scores
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.revising.forward import Revised, RevisingForward
from thoughtbubbles.engine.revising.layers import SegmentLayers
from thoughtbubbles.engine.revising.pieces import Pieces
from thoughtbubbles.engine.revising.state import RevisableState
from thoughtbubbles.engine.scoring import report, score
from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.model.interventions import within


class Recompute:
    """Computes requests from their states, which live until the requests end.

    A request without a kept state has its whole sequence computed for every token, one such request after the other, in
    a state that is used for a moment. All states together take at most `limit_bytes`, unless one alone takes more.
    """

    def __init__(self, model: Thoughtbubbles, layers: SegmentLayers, *, vocabulary: int, limit_bytes: int) -> None:
        """`layers` are the model's."""
        self.model = model
        self.vocabulary = vocabulary
        self.limit_bytes = limit_bytes
        self._layers, self._forward = layers, RevisingForward(model, layers)
        self._kept: WeakKeyDictionary[Request, RevisableState] = WeakKeyDictionary()  # drops finished requests

    def prepare(self) -> None:
        """As `SegmentLayers.prepare`."""
        self._layers.prepare()

    def forget(self) -> None:
        """Keep no state, since the weights have changed. No request has one."""
        self._kept.clear()

    @property
    def kept_bytes(self) -> int:
        """Bytes of the kept states."""
        return sum(state.nbytes for state in self._kept.values())

    def step(self, requests: Sequence[Request]) -> Pieces[dict[Request, Revised]]:
        """Compute the tokens of each request that its state lacks."""
        revised: dict[Request, Revised] = {}
        self._keep(requests)
        for request in requests:
            if request not in self._kept:
                revised[request] = yield from self._alone(request)
        if kept := [request for request in requests if request not in revised]:
            states = [self._kept[request] for request in kept]
            together = yield from self._forward.pieces(states, [request.tokens for request in kept])
            revised.update(zip(kept, together, strict=True))
        return revised

    def score(self, request: Request, top: int) -> Pieces[Scores]:
        """Return the log-probabilities of the prompt's second and later tokens, each given the prefix before it alone.

        That is the distribution that the token would be drawn from; a later token may change earlier selections, but
        not under `causal`.
        """
        prompt, vocabulary = request.prompt, self.vocabulary
        if request.selection.rule == "causal":
            ids = torch.tensor([prompt], device=self.model.transformer.wte.weight.device)
            biases = within(request.params.fork_bias, len(prompt))
            streams, _ = self.model.streams(ids, request.selection, intervene=biases)
            return score(self.model, streams, prompt[1:], 0, top, vocabulary=vocabulary)
        self._free(self._nbytes(request, len(prompt)))
        scores, state = Scores(), self._open(request, len(prompt))
        for length in range(1, len(prompt)):
            [revised] = yield from self._forward.pieces([state], [prompt[:length]])
            scores.extend(report(revised.logits[None], prompt[length : length + 1], top, vocabulary=vocabulary))
        return scores

    def _keep(self, requests: Sequence[Request]) -> None:
        """Keep states of these requests, as far as they fit beside the largest that others need for a moment."""
        if all(request in self._kept for request in requests):
            return
        moments = {request: self._nbytes(request, request.num_tokens) for request in requests}
        for request in requests:
            if request not in self._kept:
                others = max((moments[each] for each in requests if each not in {request, *self._kept}), default=0)
                if self.kept_bytes + self._nbytes(request, request.max_tokens) + others <= self.limit_bytes:
                    self._kept[request] = self._open(request, request.max_tokens)
        while self._kept:
            need = max((moments[each] for each in requests if each not in self._kept), default=0)
            if self.kept_bytes + need <= self.limit_bytes:
                return
            self._kept.popitem()

    def _free(self, nbytes: int) -> None:
        """Drop kept states until so many bytes are free."""
        while self._kept and self.kept_bytes + nbytes > self.limit_bytes:
            self._kept.popitem()

    def _nbytes(self, request: Request, max_tokens: int) -> int:
        """Return the bytes of a state for so many tokens, without making it."""
        return self._state(request, max_tokens, self.model.transformer.wte.weight.to("meta")).nbytes

    def _alone(self, request: Request) -> Pieces[Revised]:
        state = self._open(request, request.num_tokens)
        [revised] = yield from self._forward.pieces([state], [request.tokens])
        return revised

    def _open(self, request: Request, max_tokens: int) -> RevisableState:
        return self._state(request, max_tokens, self.model.transformer.wte.weight)

    def _state(self, request: Request, max_tokens: int, like: Tensor) -> RevisableState:
        return RevisableState(self.model.config, request.selection, max_tokens, like, request.params.fork_bias)
