"""Generate greedily in batches, recomputing the whole sequence for every token.

Slow, but independent of any cache. For many or long answers, run lm-evaluation-harness against the served checkpoint.
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
    vocabulary: int,
    rule: Rule,
    ratio: float | None = None,
) -> list[list[int]]:
    """Return up to `max_tokens` most likely tokens after each of `prompts`, computed in one batch.

    They are of the first `vocabulary` ids: further ones only pad the embedding. A row stops when `ends`, called with
    its generated tokens, returns True.
    """
    generated: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))
    for _ in range(max_tokens):
        rows = [[*prompts[i], *generated[i]] for i in running]
        for i, token in zip(running, _next(model, rows, vocabulary, rule, ratio), strict=True):
            generated[i].append(token)
        running = [i for i in running if not ends(generated[i])]
        if not running:
            break
    return generated


def _next(
    model: Thoughtbubbles, rows: Sequence[Sequence[int]], vocabulary: int, rule: Rule, ratio: float | None
) -> list[int]:
    device = next(model.parameters()).device
    lengths = torch.tensor([len(row) for row in rows], device=device)
    longest = int(lengths.max())
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    logits: Tensor = model(ids, rule=rule, ratio=ratio, lengths=lengths)
    last = logits[torch.arange(len(rows), device=device), lengths - 1, :vocabulary]
    found: list[int] = last.argmax(-1).tolist()
    return found
