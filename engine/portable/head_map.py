"""Rotation, score channel and value weighting as one map of the heads (SPEC.md, "Positions" and "Attenuated block").

Letters: S streams, N heads, H head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from thoughtbubbles.model import ModelConfig
from thoughtbubbles.model.rotary import rotary_frequencies


@dataclass(frozen=True)
class HeadMap:
    """Rotation and score factors of a stream set, shared by all layers of a segment; for queries, keys and values."""

    scale: Tensor
    """(S,3,1,H) factor of each channel: the angle's cosine; for values P."""
    turn: Tensor
    """(S,3,1,H) factor of the other half's channel: plus or minus the angle's sine; for values 0."""
    shift: Tensor
    """(S,3,1,H) summand: the score channel, whose two factors are 0."""
    weight: Tensor
    """(S,1) factor of both residual updates: P = exp(c)."""

    def __call__(self, heads: Tensor) -> Tensor:
        """Return heads (S,3,N,H) as attention takes them, float32, from the projected ones."""
        mapped = torch.addcmul(self.shift, heads, self.scale)
        return mapped.addcmul_(heads.roll(heads.shape[-1] // 2, -1), self.turn)


class HeadMaps:
    """Makes a model's head maps."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        H = config.head_width
        self._config = config
        self._frequencies = rotary_frequencies(H, device).repeat(2)
        self._cosine, self._sine, self._one, self._score, self._weight = torch.zeros(5, 3, 1, H, device=device)
        self._cosine[:2] = self._sine[:2] = self._weight[2] = 1
        self._sine[..., : H // 2] *= -1
        if config.fork_layers and config.score_bias:  # the last channel is the score's
            self._cosine[..., -1] = self._sine[..., -1] = 0
            self._one[0, :, -1] = self._score[1, :, -1] = 1

    def of(self, positions: Tensor, score: Tensor) -> HeadMap:
        """Return the map of streams at positions (S,) with cumulative scores c (S,), both float32."""
        angle = (positions[:, None] * self._frequencies)[:, None, None]
        c = score[:, None]
        p = c.exp()
        of_values, of_updates = (
            p if on else torch.ones_like(p)
            for on in (self._config.value_attenuation, self._config.residual_attenuation)
        )
        return HeadMap(
            scale=torch.addcmul(of_values[:, :, None, None] * self._weight, angle.cos(), self._cosine),
            turn=angle.sin() * self._sine,
            shift=torch.addcmul(self._one, c[:, :, None, None], self._score),
            weight=of_updates,
        )
