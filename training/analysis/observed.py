"""Run the forward pass of one sequence and expose its attention weights.

`tests/training/test_analysis.py` compares it with the model's own. Letters: T tokens, S streams, N heads.
"""

from collections.abc import Callable

from torch import Tensor

from thoughtbubbles.model import Fork, Selection, Streams, Thoughtbubbles
from thoughtbubbles.model.attention import Attend, attention_weights

Observe = Callable[[int, list[Fork], Tensor], None]
"""A function of a layer's number, the forks up to the layer, and its attention weights (N,S,S), whose rows sum to 1."""


def observed_streams(
    model: Thoughtbubbles, ids: Tensor, selection: Selection, observe: Observe
) -> tuple[Streams, list[Fork]]:
    """Return `Thoughtbubbles.streams` of ids (T,), calling `observe` for each layer in order."""

    def attention(layer: int, forks: list[Fork]) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            weights = attention_weights(q, k)
            observe(layer, forks, weights[0])
            return weights.type_as(v) @ v

        return attend

    return model.streams(ids[None], selection, attend=attention)
