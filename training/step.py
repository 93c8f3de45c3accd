"""One optimizer step: forward, backward, clip, update. Nothing here waits for the device."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch._dynamo import config as compiler
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from model import Thoughtbubbles
from training.config import Precision, TrainConfig
from training.data.loader import PADDING, inputs, targets
from training.distributed import Ranks, replicate, shard
from training.fused import Fusions, fused_loss
from training.optimizer import build_optimizers, clip, clip_by_scale, set_learning_rate
from training.schedule import RATIO_LEVELS, fork_noise, learning_rate_factor, ratio


def next_token_loss(
    model: Thoughtbubbles,
    windows: Tensor,
    ratio: float | None = None,
    noise: Tensor | None = None,
    *,
    padded: bool = False,
) -> Tensor:
    """Mean negative log-likelihood (nats a token) of all but the first of windows (B,T+1), under the training rule.

    `ratio` and `noise` are those of `Thoughtbubbles.forward`. Where `padded`, windows may end in `PADDING`, which takes
    no part: neither in the loss nor in the budget of its row; and some of their tokens may be inputs alone.
    """
    ids, expected = windows[:, :-1], windows[:, 1:]
    lengths = (expected != PADDING).sum(1) if padded else None
    logits = model(inputs(ids) if padded else ids, rule="blockwise", ratio=ratio, noise=noise, lengths=lengths)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets(expected).flatten(), ignore_index=PADDING)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Matrix products in `precision`; weights stay float32."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, torch.bfloat16)


class NextTokenLoss(nn.Module):
    """`next_token_loss` as a module, which is what DDP wraps and the compiler takes whole."""

    def __init__(self, model: Thoughtbubbles, *, padded: bool = False, fusions: Fusions | None = None) -> None:
        super().__init__()
        self.model = model
        self._padded = padded
        self._fusions = fusions

    def forward(self, windows: Tensor, ratio: float | None, noise: Tensor | None) -> Tensor:
        """(), of windows (B,T+1)."""
        if self._fusions is not None:
            return fused_loss(self.model, windows, ratio, noise, padded=self._padded, fusions=self._fusions)
        return next_token_loss(self.model, windows, ratio, noise, padded=self._padded)


class TrainStep:
    """A model, its optimizers and what happens to them in a step; the model's weights are sharded in place."""

    def __init__(
        self,
        model: Thoughtbubbles,
        config: TrainConfig,
        ranks: Ranks,
        *,
        padded: bool = False,
        fusions: Fusions | None = None,
        scaled_clip: bool = False,
    ) -> None:
        self.model = model
        self._config = config
        self._ranks = ranks
        self._padded = padded
        self._loss = _prepare(model, config, ranks, padded=padded, fusions=fusions)
        self.optimizers = build_optimizers(model, config)
        self._clip = clip_by_scale if scaled_clip else clip

    def __call__(self, step: int, batches: Iterable[Tensor]) -> Tensor:
        """Learn from `config.accumulation` batches as step `step` (from 0); their losses, still on the device.

        Chance (dropout, noise) is a function of seed, step and rank alone, so that resuming needs no generator's state.
        """
        self.model.train()
        torch.manual_seed(((self._config.seed << 32) + step) * 4096 + self._ranks.rank & 2**63 - 1)
        peak = self._config.learning_rate
        set_learning_rate(self.optimizers, peak * learning_rate_factor(step, self._config))
        batches = list(batches)
        weights = self._weights(batches)
        losses = [self._accumulate(step, index, batches[index], weights[index]) for index in range(len(batches))]
        self._clip(self.model, self.optimizers, self._config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return torch.stack(losses)

    def _weights(self, batches: list[Tensor]) -> list[float]:
        """What each batch's loss is weighed with: all targets of a step count alike, on whatever number of ranks."""
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
        """Ranks exchange gradients once a step, with the last batch's."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        if isinstance(self._loss, DistributedDataParallel) and not last:
            return self._loss.no_sync()
        return nullcontext()

    def _to_device(self, ids: Tensor) -> Tensor:
        if self._ranks.device.type != "cuda":
            return ids.to(self._ranks.device)
        return ids.pin_memory().to(self._ranks.device, non_blocking=True)  # a copy from pageable memory would wait


def _prepare(
    model: Thoughtbubbles, config: TrainConfig, ranks: Ranks, *, padded: bool = False, fusions: Fusions | None = None
) -> nn.Module:
    """The loss of `model`, recomputing, compiled and spread over the ranks as `config` asks."""
    sharded = config.parallelism == "fsdp" and ranks.world_size > 1
    if fusions is not None:  # it calls no block, and blocks are what is recomputed and sharded
        assert not config.recompute
        assert not sharded
        assert not config.dropout
    loss = NextTokenLoss(model, padded=padded, fusions=fusions)
    if config.compile:
        _compile(loss, config, sharded=sharded)
    if config.recompute:
        for block in model.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    if sharded:
        shard(model)
        return loss
    return replicate(loss, ranks)


def _compile(loss: NextTokenLoss, config: TrainConfig, *, sharded: bool) -> None:
    """Have the step compiled when it first runs, for the shapes it then has: no dimension varies from step to step."""
    if config.random_ratio:
        compiler.recompile_limit = max(compiler.recompile_limit, 3 * RATIO_LEVELS)  # of a block, which may fork
    if not sharded:
        # Ranks run the graph of one alone. Cut at DDP's buckets it would be sent piece by piece, but fuse less.
        compiler.optimize_ddp = False
        loss.compile(dynamic=False)
        return
    # What is sharded gathers its weights before each block: what runs after that is compiled, and not the gathering,
    # which is no graph.
    for block in loss.model.blocks:
        block.forward = torch.compile(block.forward, dynamic=False)  # type: ignore[method-assign]
