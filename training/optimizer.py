"""Build the optimizers of a model: which parameters have weight decay, and which ones Muon updates."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from thoughtbubbles.training.config import TrainConfig


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return AdamW for all parameters; with `optimizer = "muon"`, Muon for the layers' matrices, AdamW for the rest.

    Only parameters with two dimensions or more decay: biases, norms and fork embeddings are scales and offsets.
    """
    parameters = dict(model.named_parameters())
    matrices = [p for name, p in parameters.items() if config.optimizer == "muon" and _is_block_matrix(name, p)]
    by_muon = {id(p) for p in matrices}
    adamw = _adamw([p for p in parameters.values() if id(p) not in by_muon], config)
    return [adamw, _muon(matrices, config)] if matrices else [adamw]


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], learning_rate: float) -> None:
    """Set the learning rate of every group of every optimizer."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate


def _is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Return whether this is a matrix of a layer, but not the fork's projection, which has two rows."""
    return ".h." in name and parameter.dim() == 2 and not name.endswith("forking_score.weight")


def _adamw(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def _muon(matrices: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Return Muon with updates scaled to the size of AdamW's, so that both can use one learning rate and decay."""
    return torch.optim.Muon(
        matrices, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
