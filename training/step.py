"""One optimizer step: forward, backward, clip, update. Nothing here waits for the device."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from model import Thoughtbubbles
from training.config import Precision, TrainConfig
from training.optimizer import build_optimizers, set_learning_rate
from training.schedule import learning_rate_factor


def next_token_loss(model: Thoughtbubbles, windows: Tensor) -> Tensor:
    """Mean negative log-likelihood (nats a token) of all but the first of windows (B,T+1), under the training rule."""
    logits = model(windows[:, :-1], rule="blockwise")
    return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Matrix products in `precision`; weights stay float32."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, torch.bfloat16)


class TrainStep:
    """A model, its optimizers and what happens to them in a step."""

    def __init__(self, model: Thoughtbubbles, config: TrainConfig, device: torch.device) -> None:
        self.model = model
        self.optimizers = build_optimizers(model, config)
        self._config = config
        self._device = device
        # No dimension varies from step to step, and a graph for fixed shapes is the faster one.
        self._loss = torch.compile(next_token_loss, dynamic=False) if config.compile else next_token_loss

    def __call__(self, step: int, batches: Iterable[Tensor]) -> Tensor:
        """Learn from `config.accumulation` batches as step `step` (from 0); the mean loss, still on the device."""
        self.model.train()
        peak = self._config.learning_rate
        set_learning_rate(self.optimizers, peak * learning_rate_factor(step, self._config))
        total = torch.zeros((), device=self._device)
        for windows in batches:
            total += self._accumulate(windows)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return total

    def _accumulate(self, windows: Tensor) -> Tensor:
        with autocast(self._device, self._config.precision):
            loss = self._loss(self.model, self._to_device(windows))
        loss = loss / self._config.accumulation
        loss.backward()
        return loss.detach()

    def _to_device(self, ids: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return ids.to(self._device)
        return ids.pin_memory().to(self._device, non_blocking=True)  # a copy from pageable memory would wait
