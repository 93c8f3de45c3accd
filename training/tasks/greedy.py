"""Batched greedy continuation by the one-pass forward, the whole sequence anew for every token.

Slow, and without a cache to trust; for many or long answers, run lm-evaluation-harness against the served checkpoint.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.model.selection import Rule


@torch.inference_mode()
def continue_greedily(
    model: Thoughtbubbles,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    ends: Callable[[list[int]], bool],
    *,
    rule: Rule,
    ratio: float | None = None,
) -> list[list[int]]:
    """Up to `max_tokens` likeliest tokens after each of `prompts`, together in one batch.

    A row stops when `ends` says so of what it has, the last token included.
    """
    made: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))
    for _ in range(max_tokens):
        rows = [[*prompts[i], *made[i]] for i in running]
        for i, token in zip(running, _next(model, rows, rule, ratio), strict=True):
            made[i].append(token)
        running = [i for i in running if not ends(made[i])]
        if not running:
            break
    return made


def _next(model: Thoughtbubbles, rows: Sequence[Sequence[int]], rule: Rule, ratio: float | None) -> list[int]:
    device = next(model.parameters()).device
    lengths = torch.tensor([len(row) for row in rows], device=device)
    longest = int(lengths.max())
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    logits: Tensor = model(ids, rule=rule, ratio=ratio, lengths=lengths)
    last: list[int] = logits[torch.arange(len(rows), device=device), lengths - 1].argmax(-1).tolist()
    return last
