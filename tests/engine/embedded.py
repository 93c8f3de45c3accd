"""A token's row of a model's embedding, which a test sets and pytest's monkeypatch restores."""

import pytest
import torch
from torch import Tensor

from thoughtbubbles.model import Thoughtbubbles


class EmbeddedToken:
    """The row as an attribute, written in place: executors have read the head, which is tied to it, before."""

    def __init__(self, model: Thoughtbubbles, token: int) -> None:
        self._weight, self._token = model.transformer.wte.weight.detach(), token

    @property
    def row(self) -> Tensor:
        return self._weight[self._token].clone()

    @row.setter
    def row(self, value: Tensor) -> None:
        self._weight[self._token] = value


def embed(monkeypatch: pytest.MonkeyPatch, model: Thoughtbubbles, token: int, value: float) -> None:
    """Embed a token as so many, until the test ends."""
    monkeypatch.setattr(EmbeddedToken(model, token), "row", torch.tensor(value))
