"""Generate by recomputing the whole sequence for every token: slow and simple, the oracle for tests of the engine."""

from collections.abc import Sequence

import torch
from torch import Tensor

from thoughtbubbles.model.interventions import Intervention, within
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
    intervene: Sequence[Intervention] = (),
) -> list[int]:
    """Return up to `max_tokens` tokens that continue `ids`.

    For every token the streams of the whole sequence are selected again, by `rule` and `ratio` (see
    `Thoughtbubbles.forward`). `temperature` 0 chooses the most likely token; otherwise `seed` makes the draws
    repeatable. Stops after `end_of_text`, which is returned too. `intervene` is as in `Thoughtbubbles.forward`; its
    positions may be those of tokens to come. Raises `ValueError` for no `ids` or a temperature below 0.
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
        logits = model(block, rule=rule, ratio=ratio, intervene=within(intervene, len(sequence)))[0, -1]
        sequence.append(_choose(logits.float().cpu(), temperature, generator))
        if sequence[-1] == end_of_text:
            break
    return sequence[len(ids) :]


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """Return a token id drawn from logits (V,)."""
    if temperature == 0:
        return int(logits.argmax())
    # Relative to the highest logit and in float64, so that no temperature makes the highest quotient infinite.
    probabilities = ((logits - logits.max()).double() / temperature).softmax(dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))
