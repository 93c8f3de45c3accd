"""The optimizers over a model's parameters: which of them decay, and which of them Muon steers."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from thoughtbubbles.training.config import TrainConfig


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters; with `optimizer = "muon"`, Muon for the layers' matrices and AdamW for the rest.

    Only what has two dimensions or more decays: biases, norms and fork embeddings are scales and offsets.
    """
    parameters = dict(model.named_parameters())
    matrices = [p for name, p in parameters.items() if config.optimizer == "muon" and _is_block_matrix(name, p)]
    taken = {id(p) for p in matrices}
    adamw = _adamw([p for p in parameters.values() if id(p) not in taken], config)
    return [adamw, _muon(matrices, config)] if matrices else [adamw]


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], learning_rate: float) -> None:
    """The same rate for every group of every optimizer."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate


def _is_block_matrix(name: str, parameter: Tensor) -> bool:
    """A layer's matrix: neither the embedding nor the two rows of a fork score."""
    return ".h." in name and parameter.dim() == 2 and not name.endswith("forking_score.weight")


def _adamw(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def _muon(matrices: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Its steps are scaled to the size of AdamW's, so that one learning rate and one decay serve both."""
    return torch.optim.Muon(
        matrices, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
