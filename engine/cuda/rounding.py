"""A model whose layers have weights in 8 bits: whole numbers up to 127, times a scale for each output.

Decode reads the whole numbers (`engine.cuda.kernels.linear`). Prefill multiplies many rows, which takes as long as the
products do, so it has the rounded weights in the model's own dtype too: both compute with the same weights, up to the
rounding of that dtype. So memory is not what this saves. The exact weights stay as well, for new ones are swapped into
them (`Engine.replace_weights`).

Letters: K inputs, O outputs.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from thoughtbubbles.model import Thoughtbubbles

LARGEST = 127


class RoundedLinear(nn.Linear):
    """A linear layer with rounded weights. It has those of another one as they were when `round_weights` read them."""

    whole: Tensor
    """(O,K) int8."""
    scale: Tensor
    """(O,) float32."""

    def __init__(self, exact: nn.Linear) -> None:
        weight = exact.weight.detach()
        super().__init__(exact.in_features, exact.out_features, bias=False, device="meta", dtype=weight.dtype)
        self.exact = exact
        self.weight = nn.Parameter(torch.empty_like(weight), requires_grad=False)
        self.bias = exact.bias
        self.register_buffer("whole", torch.empty_like(weight, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(len(weight), device=weight.device))

    def rounded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return `weight`, `whole` and `scale` of the exact layer's present weights.

        An output whose weights are not all finite has a scale that is not finite either.
        """
        weight = self.exact.weight.detach().float()
        scale = weight.abs().amax(1) / LARGEST
        whole = (weight / scale.where(scale > 0, 1)[:, None]).round_().nan_to_num_(0, 0, 0)
        return (whole * scale[:, None]).to(self.weight.dtype), whole.to(torch.int8), scale


def with_rounded_weights(model: Thoughtbubbles) -> Thoughtbubbles:
    """Return a model that shares all tensors with another but the weights of its layers, which `round_weights` fills.

    Embedding, head, norms, forks and biases are exact.
    """
    rounded = deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for block in rounded.blocks:
        for owner, name in (
            (block.attn, "c_attn"),
            (block.attn, "c_proj"),
            (block.mlp, "c_fc"),
            (block.mlp, "c_proj"),
        ):
            setattr(owner, name, RoundedLinear(getattr(owner, name)))
    return rounded


@torch.no_grad()
def round_weights(model: Thoughtbubbles) -> None:
    """Fill the rounded layers of a model, if it has any, from the exact ones, in place: graphs have their addresses.

    Raises if there is no memory for all of them once more, and then nothing has changed.
    """
    layers = [module for module in model.modules() if isinstance(module, RoundedLinear)]
    for layer, values in zip(layers, [layer.rounded() for layer in layers], strict=True):
        for own, value in zip((layer.weight, layer.whole, layer.scale), values, strict=True):
            own.copy_(value)
