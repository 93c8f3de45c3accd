"""Sampling that recomputes everything for every token: slow, obvious, and the oracle that the engine is held to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from thoughtbubbles.model.selection import Rule
from thoughtbubbles.model.transformer import Thoughtbubbles


@torch.inference_mode()
def generate(
    model: Thoughtbubbles,
    ids: Sequence[int],
    max_tokens: int,
    *,
    rule: Rule = "causal",
    ratio: float | None = None,
    temperature: float = 1.0,
    seed: int | None = None,
    end_of_text: int | None = None,
) -> list[int]:
    """Continue the tokens `ids` by up to `max_tokens` more and return only those.

    Every token has the streams of the whole sequence chosen anew, by `rule` and `ratio` (see `Thoughtbubbles.forward`).
    `temperature` 0 takes the likeliest token; otherwise `seed` makes the draw repeatable. Ends after `end_of_text`,
    which is returned too. Raises `ValueError` for no `ids` or a temperature below 0.
    """
    if not ids:
        raise ValueError("ids must hold at least one token to continue from")
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, not {temperature}")
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    sequence = list(ids)
    for _ in range(max_tokens):
        block = torch.tensor([sequence], device=model.transformer.wte.weight.device)
        logits = model(block, rule=rule, ratio=ratio)[0, -1]
        sequence.append(_choose(logits.float().cpu(), temperature, generator))
        if sequence[-1] == end_of_text:
            break
    return sequence[len(ids) :]


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """One token id drawn from logits (V,)."""
    if temperature == 0:
        return int(logits.argmax())
    # Below the highest, in float64: no temperature is so low that the quotient is infinite at the highest.
    probabilities = ((logits - logits.max()).double() / temperature).softmax(dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))
