"""Tokens for requests that wait for the host to draw them, with all that they ask of it.

Letters: R requests, V vocabulary.
"""

import torch
from torch import Tensor

from thoughtbubbles.engine.completion import banned
from thoughtbubbles.engine.prompt_report import Scored
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.sampling import Draw, ban, penalise, sample
from thoughtbubbles.engine.scoring import report
from thoughtbubbles.model import Tokenizer


def draw_tokens(requests: list[Request], logits: Tensor, tokenizer: Tokenizer) -> list[int]:
    """A token for each request, from logits (R,V)."""
    adjusted = logits.clone()
    adjusted[:, tokenizer.vocab_size :] = -torch.inf  # rows that only pad the embedding
    for i, request in enumerate(requests):
        if request.params.adjusts_logits:
            adjusted[i] = penalise(adjusted[i], request.params, request.prompt, request.output)
        if ids := banned(request, tokenizer.end_of_text):
            adjusted[i] = ban(adjusted[i], ids)
    positions = [len(request.output) for request in requests]
    draw = Draw.of([r.params for r in requests], [r.seed for r in requests], positions, logits.device)
    return sample(adjusted, draw).tolist()


def score_tokens(
    requests: list[Request], logits: Tensor, tokens: list[int], tokenizer: Tokenizer
) -> list[Scored | None]:
    """The log-probability of each request's token, under the raw distribution, where it was asked."""
    asked = [i for i, request in enumerate(requests) if request.params.logprobs is not None]
    scores: list[Scored | None] = [None] * len(requests)
    if asked:
        tops = [requests[i].params.logprobs or 0 for i in asked]
        reported = report(logits[asked], [tokens[i] for i in asked], max(tops), vocabulary=tokenizer.vocab_size)
        for i, top, (logprob, likeliest) in zip(asked, tops, reported, strict=True):
            scores[i] = logprob, likeliest[:top]
    return scores
