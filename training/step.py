"""One optimizer step: forward, backward, clip, update. It never waits for the device."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor, nn
from torch._dynamo import config as compiler
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from thoughtbubbles.model import ModelConfig, Thoughtbubbles
from thoughtbubbles.training.config import Precision, TrainConfig
from thoughtbubbles.training.data.loader import PADDING, inputs, targets
from thoughtbubbles.training.distributed import Ranks, replicate, shard
from thoughtbubbles.training.optimizer import build_optimizers, set_learning_rate
from thoughtbubbles.training.read_back import guard_read_backs
from thoughtbubbles.training.schedule import RATIO_LEVELS, fork_noise, learning_rate_factor, ratio


def next_token_loss(
    model: Thoughtbubbles,
    windows: Tensor,
    ratio: float | None = None,
    noise: Tensor | None = None,
    *,
    padded: bool = False,
) -> Tensor:
    """Return the mean negative log-likelihood (nats per token) of windows (B,T+1), but first tokens, under `blockwise`.

    `ratio` and `noise` are those of `Thoughtbubbles.forward`. With `padded`, windows may end in `PADDING`, which counts
    neither in the loss nor in the budget of its row, and may have prompt tokens, which are only inputs.
    """
    ids, expected = windows[:, :-1], windows[:, 1:]
    lengths = (expected != PADDING).sum(1) if padded else None
    logits = model(inputs(ids) if padded else ids, rule="blockwise", ratio=ratio, noise=noise, lengths=lengths)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets(expected).flatten(), ignore_index=PADDING)


class LossFunction(Protocol):
    """The signature of `next_token_loss` and `fused_loss`."""

    def __call__(
        self, model: Thoughtbubbles, windows: Tensor, ratio: float | None, noise: Tensor | None, /, *, padded: bool
    ) -> Tensor:
        """Return the mean loss () of windows (B,T+1)."""


def loss_function(model_config: ModelConfig, config: TrainConfig, ranks: Ranks) -> LossFunction:
    """Return `fused_loss` if it supports these settings on this device, else `next_token_loss`."""
    kernels = ranks.device.type == "cuda" and find_spec("triton") is not None
    blocks = config.recompute or _sharded(config, ranks)  # both wrap the blocks, which the fused loss does not call
    if not kernels or blocks or config.precision != "bfloat16" or model_config.averaging == "logit":
        return next_token_loss
    from thoughtbubbles.training.fused import fused_loss  # noqa: PLC0415 - needs Triton

    return fused_loss


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Return a context in which matrix products have `precision`; weights stay float32."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, torch.bfloat16)


class NextTokenLoss(nn.Module):
    """The loss as a module, for DDP to wrap and the compiler to compile as one graph."""

    def __init__(
        self, model: Thoughtbubbles, *, padded: bool = False, function: LossFunction = next_token_loss
    ) -> None:
        super().__init__()
        self.model = model
        self.function = function
        self._padded = padded

    def forward(self, windows: Tensor, ratio: float | None, noise: Tensor | None) -> Tensor:
        """Return the mean loss () of windows (B,T+1)."""
        return self.function(self.model, windows, ratio, noise, padded=self._padded)


class TrainStep:
    """A training step of a model, with its optimizers. Shards the model's weights in place if so configured."""

    def __init__(self, model: Thoughtbubbles, config: TrainConfig, ranks: Ranks, *, padded: bool = False) -> None:
        self.model = model
        self._config = config
        self._ranks = ranks
        self._padded = padded
        self._loss = _prepare(model, config, ranks, padded=padded)
        self.optimizers = build_optimizers(model, config)

    def __call__(self, step: int, batches: Iterable[Tensor]) -> Tensor:
        """Train on `config.accumulation` batches as step `step` (from 0); return their losses, still on the device.

        Random numbers (dropout, noise) depend only on seed, step and rank, so that resuming needs no generator state.
        """
        self.model.train()
        torch.manual_seed(((self._config.seed << 32) + step) * 4096 + self._ranks.rank & 2**63 - 1)
        peak = self._config.learning_rate
        set_learning_rate(self.optimizers, peak * learning_rate_factor(step, self._config))
        batches = list(batches)
        weights = self._weights(batches)
        losses = [self._accumulate(step, index, batches[index], weights[index]) for index in range(len(batches))]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return torch.stack(losses)

    def _weights(self, batches: list[Tensor]) -> list[float]:
        """Return the weight of each batch's loss: all targets of a step count equally, on any number of ranks."""
        if not self._padded:
            return [1.0] * len(batches)
        counts = torch.tensor([int((windows[:, 1:] > PADDING).sum()) for windows in batches], dtype=torch.float64)
        mean = self._ranks.total(counts.sum()) / (self._ranks.world_size * len(batches))
        return (counts / mean).tolist()

    def _accumulate(self, step: int, index: int, windows: Tensor, weight: float) -> Tensor:
        config, device = self._config, self._ranks.device
        noise = torch.full((), fork_noise(step, config), device=device) if config.fork_noise else None
        drawn = ratio(step * config.accumulation + index, self.model.config, config)
        with self._synchronised(last=index == config.accumulation - 1):
            with autocast(device, config.precision):
                loss: Tensor = self._loss(self._to_device(windows), drawn, noise) * weight
            (loss / config.accumulation).backward()
        return loss.detach()

    def _synchronised(self, *, last: bool) -> AbstractContextManager[None]:
        """Return a context in which ranks exchange gradients only for the last batch of a step."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        if isinstance(self._loss, DistributedDataParallel) and not last:
            return self._loss.no_sync()
        return nullcontext()

    def _to_device(self, ids: Tensor) -> Tensor:
        if self._ranks.device.type != "cuda":
            return ids.to(self._ranks.device)
        return ids.pin_memory().to(self._ranks.device, non_blocking=True)  # a copy from pageable memory would block


def _prepare(model: Thoughtbubbles, config: TrainConfig, ranks: Ranks, *, padded: bool = False) -> nn.Module:
    """Return the loss of `model` as a module, with recomputation, compilation and parallelism as in `config`."""
    loss = NextTokenLoss(model, padded=padded, function=loss_function(model.config, config, ranks))
    sharded = _sharded(config, ranks)
    if config.compile:
        if ranks.device.type == "cuda":
            guard_read_backs()
        _compile(loss, config, sharded=sharded)
    if config.recompute:
        for block in model.transformer.h:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if sharded:
        shard(model, ranks)
        return loss
    return replicate(loss, ranks)


def _sharded(config: TrainConfig, ranks: Ranks) -> bool:
    return config.parallelism == "fsdp" and ranks.world_size > 1


def _compile(loss: NextTokenLoss, config: TrainConfig, *, sharded: bool) -> None:
    """Compile the step at its first run, for static shapes: no dimension varies from step to step."""
    if config.random_ratio:
        compiler.recompile_limit = max(compiler.recompile_limit, 3 * RATIO_LEVELS)  # per block, which may fork
    if not sharded:
        # Every rank runs the graph of a single process. Splitting it at DDP's buckets would overlap communication, but
        # fuse fewer operations.
        compiler.optimize_ddp = False
        loss.compile(dynamic=False)
        return
    # A sharded model gathers weights before each block. Gathering cannot be part of a graph, so blocks are compiled
    # separately.
    for block in loss.model.transformer.h:
        block.forward = torch.compile(block.forward, dynamic=False)
