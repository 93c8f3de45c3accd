"""Logits and log-probabilities of chosen tokens, from streams, in bounded memory.

Letters: S streams, T tokens, W wanted tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from thoughtbubbles.engine.prompt_report import Scored, Scores
from thoughtbubbles.model import Streams, Thoughtbubbles

TOKENS_AT_ONCE = 128
"""Tokens of a prompt whose logits are in memory at once. Prompts are scored one after the other, so that logits and
log-probabilities take 2 · 128 · V · 4 bytes for any number and length of prompts. The `logit` averaging has logits of
every stream, and takes up to `max_ratio` + 1 times as much."""


def pick(streams: Streams, wanted: Tensor) -> Streams:
    """Return the streams of the wanted tokens (W,), ascending, renumbered from 0; `streams` is one row (B = 1)."""
    number = torch.full((streams.tokens + 1,), -1, device=wanted.device)
    number[wanted] = torch.arange(len(wanted), device=wanted.device)
    token_index = number[streams.token_index[0]]
    kept = (token_index >= 0).nonzero()[:, 0]
    return Streams(streams.x[:, kept], streams.score[:, kept], token_index[kept][None], len(wanted))


def last_logits(
    model: Thoughtbubbles, streams: Streams, last: list[int], head: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return logits (W,V), float32, of these tokens, ascending; `head` as in `Thoughtbubbles.readout`."""
    if len(last) < streams.tokens:
        streams = pick(streams, torch.tensor(last, device=streams.x.device))
    return model.readout(streams, head)[0].float()


def score(
    model: Thoughtbubbles, streams: Streams, targets: Sequence[int], first: int, top: int, *, vocabulary: int
) -> Scores:
    """Return what `report` returns, for targets i that follow token `first` + i of `streams`."""
    scores = Scores()
    for start in range(0, len(targets), TOKENS_AT_ONCE):
        some = targets[start : start + TOKENS_AT_ONCE]
        tokens = torch.arange(first + start, first + start + len(some), device=streams.x.device)
        scores.extend(report(model.readout(pick(streams, tokens))[0], some, top, vocabulary=vocabulary))
    return scores


def report(logits: Tensor, chosen: Sequence[int], top: int, *, vocabulary: int) -> list[Scored]:
    """Return log-probabilities of the chosen tokens under logits (W,V), and the `top` likeliest of each row.

    They are normalised over all V, as in training and evaluation. Ids from `vocabulary` on only pad the embedding and
    are never among the likeliest.
    """
    logits = logits.float()
    log_p = logits.log_softmax(1)
    own = log_p.gather(1, torch.tensor(chosen, device=logits.device)[:, None])[:, 0].tolist()
    ids = highest(logits[:, :vocabulary], top)
    rows = zip(ids.tolist(), log_p.gather(1, ids).tolist(), strict=True)
    return [(p, tuple(zip(i, v, strict=True))) for p, (i, v) in zip(own, rows, strict=True)]


def highest(logits: Tensor, top: int) -> Tensor:
    """Return the ids (W,K) of each row's `top` highest logits, or of all if there are fewer: the highest first, and
    of equal ones the lowest id.
    """
    top = min(top, logits.shape[1])
    values, ids = logits.topk(min(top + 1, logits.shape[1]), dim=1)
    if 0 < top < logits.shape[1]:  # which of equals `topk` returns is not defined
        for row in (values[:, top - 1] == values[:, top]).nonzero()[:, 0].tolist():
            higher = int((values[row] > values[row, top]).sum())
            ids[row, higher:top] = (logits[row] == values[row, top]).nonzero()[: top - higher, 0]
    ids = ids[:, :top].sort(1).values
    return ids.gather(1, logits.gather(1, ids).argsort(dim=1, descending=True, stable=True))
