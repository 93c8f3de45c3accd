"""Sampling on the host side of an executor: a token for each request from its logits, with everything it may ask for.

Letters: R requests, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from thoughtbubbles.engine.prompt_report import Scored
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.sampling import Draw, ban, banned_early, finite_rows, penalise, sample
from thoughtbubbles.engine.scoring import report
from thoughtbubbles.model import Tokenizer


@dataclass(frozen=True)
class Drawn:
    """The columns of `Output` that sampling fills, one entry a request."""

    finite: list[bool]
    tokens: list[int | None]
    logprobs: list[Scored | None]

    @classmethod
    def of(cls, tokens: Sequence[int], draws: Sequence[bool], logprobs: Sequence[Scored | None] | None = None) -> Self:
        """Return the columns of `tokens` that an executor drew; -1 if logits are NaN or infinite.

        `draws` says for each whether a token was to be drawn.
        """
        drawn = [token if wanted and token >= 0 else None for token, wanted in zip(tokens, draws, strict=True)]
        return cls(
            [True] * len(tokens) if min(tokens, default=0) >= 0 else [token >= 0 for token in tokens],
            drawn,
            [None] * len(tokens) if logprobs is None
            else [None if token is None else one for token, one in zip(drawn, logprobs, strict=True)],
        )  # fmt: skip

    def fill(self, rows: Sequence[int], own: "Drawn") -> None:
        """Replace the entries of these rows by those of `own`."""
        for i, finite, token, logprob in zip(rows, own.finite, own.tokens, own.logprobs, strict=True):
            self.finite[i], self.tokens[i], self.logprobs[i] = finite, token, logprob


class Sampler:
    """Draws tokens with torch operators, on the device of the logits."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.vocabulary = tokenizer.vocab_size
        """How many of the model's token ids stand for a text; those after them only pad its embedding."""
        self.end_of_text = tokenizer.end_of_text

    def draw(self, requests: Sequence[Request], logits: Tensor, guessed: Sequence[int] = ()) -> Drawn:
        """Draw from logits (R,V) for each request whose tokens are all computed and that draws another.

        Row i follows the first `guessed[i]` guesses of its request's draft, none by default: a request may have a row
        for each. Rows that are NaN or infinite get no token, nor do requests whose grammar has failed.
        """
        finite = finite_rows(logits)
        rows = [i for i, request in enumerate(requests) if finite[i] and may_draw(request)]
        tokens: list[int | None] = [None] * len(requests)
        logprobs: list[Scored | None] = [None] * len(requests)
        if rows:
            drawing = [requests[i] for i in rows]
            own = (logits if len(rows) == len(requests) else logits[rows]).float()
            drawn = self._sample(drawing, own, [requests[i].with_guesses(guessed[i] if guessed else 0) for i in rows])
            for i, token, scored in zip(rows, drawn, self._score(drawing, own, drawn), strict=True):
                tokens[i], logprobs[i] = token, scored
        return Drawn(finite, tokens, logprobs)

    def _sample(self, requests: list[Request], logits: Tensor, outputs: list[list[int]]) -> list[int]:
        """Return a token for each request, from logits (R,V) that follow these outputs."""
        adjusted = logits.clone()
        adjusted[:, self.vocabulary :] = -torch.inf  # rows that only pad the embedding
        for i, (request, output) in enumerate(zip(requests, outputs, strict=True)):
            if request.params.adjusts_logits:
                adjusted[i] = penalise(adjusted[i], request.params, request.prompt, output)
            if request.grammar is not None:
                adjusted[i, : self.vocabulary].masked_fill_(request.grammar.forbidden.to(logits.device), -torch.inf)
            if len(output) < request.params.min_tokens:
                self._ban_early(request, adjusted[i])
        positions = list(map(len, outputs))
        draw = Draw.of([r.params for r in requests], [r.seed for r in requests], positions, logits.device)
        tokens: list[int] = sample(adjusted, draw).tolist()
        return tokens

    def _ban_early(self, request: Request, logits: Tensor) -> None:
        """Ban in logits (V,) what would end a request before `min_tokens`, unless its grammar leaves nothing else."""
        remaining = ban(logits, banned_early(request.params, self.end_of_text))
        if request.grammar is None or bool((remaining > -torch.inf).any()):
            logits.copy_(remaining)

    def _score(self, requests: list[Request], logits: Tensor, tokens: list[int]) -> list[Scored | None]:
        """Return the log-probability of each request's token under the raw distribution, where requested."""
        rows = [i for i, request in enumerate(requests) if request.params.logprobs is not None]
        scores: list[Scored | None] = [None] * len(requests)
        if rows:
            tops = [requests[i].params.logprobs or 0 for i in rows]
            reported = report(logits[rows], [tokens[i] for i in rows], max(tops), vocabulary=self.vocabulary)
            for i, top, (logprob, likeliest) in zip(rows, tops, reported, strict=True):
                scores[i] = logprob, likeliest[:top]
        return scores


def may_draw(request: Request) -> bool:
    """Return whether a token is to be drawn for a request, and one can follow in its grammar."""
    if not (request.is_computed and request.draws):
        return False
    return request.grammar is None or request.grammar.failure is None
