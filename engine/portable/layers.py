"""A model's layers for rows of streams laid end to end, with weights packed once for the processor.

Letters: S streams, D model width, V vocabulary.
"""

from collections.abc import Callable, Iterator

from torch import Tensor

from thoughtbubbles.engine.portable.block import Attend, CachedBlock
from thoughtbubbles.engine.portable.head_map import HeadMaps
from thoughtbubbles.engine.portable.linear import PackedLinear
from thoughtbubbles.model import Thoughtbubbles


class PackedModel:
    """The layers that forward passes over cached keys and values share. Reads the weights once, when it is made."""

    def __init__(self, model: Thoughtbubbles) -> None:
        embedding = model.transformer.wte.weight.detach()
        self.head = PackedLinear(embedding, None)
        """(…,D) → (…,V), for `Thoughtbubbles.readout`."""
        self._blocks = [CachedBlock(block) for block in model.blocks]
        self._maps = HeadMaps(model.config, embedding.device)

    def run(self, layers: range, x: Tensor, positions: Tensor, score: Tensor, attend: Callable[[int], Attend]) -> None:
        """Run the layers of a segment over x (S,D), in place: streams at positions (S,) with scores (S,), both float32.

        `attend` returns the attention of a layer.
        """
        for _ in self.each(layers, x, positions, score, attend):
            pass

    def each(
        self, layers: range, x: Tensor, positions: Tensor, score: Tensor, attend: Callable[[int], Attend]
    ) -> Iterator[int]:
        """As `run`. Yield each layer once it is computed."""
        by = self._maps.of(positions, score)
        for layer in layers:
            self._blocks[layer](x, by, attend(layer))
            yield layer
