"""Count the floating-point operations of training, and look up the peak of a device."""

import torch

from thoughtbubbles.model import ModelConfig

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Peak operations per second in bfloat16 without sparsity, as NVIDIA states them for the SXM boards."""


def streams_by_layer(config: ModelConfig, kappa: int) -> list[int]:
    """Return the streams that each layer computes for a block of L tokens under `blockwise` with budget κ."""
    streams, layers = config.block_size * config.copies, []
    for layer in range(config.n_layer):
        if layer in config.fork_layers:
            streams = max(config.block_size, min(kappa, 2 * streams))
        layers.append(streams)
    return layers * config.loops


def flops_per_block(config: ModelConfig, ratio: float | None = None) -> float:
    """Return the operations to train on one block of L tokens at ratio r (None: the model's own).

    A multiply-add is two. Only streams that are computed count. Under `blockwise` layer l has S_l of them, for any
    text: max(L, min(κ, 2 · S_{l-1})) in a fork layer, else S_{l-1}. The forward pass takes

    - 24 · S_l · D² in the matrices of a layer: 3D² query, key and value, D² out, 8D² MLP, twice each;
    - 2 · S_l² · D in its attention: queries by keys and weights by values, half of each causally masked;
    - 4 · S_{l-1} · D in a fork's two logits, for the streams that enter it;
    - 2 · D · V in the head for each token (for each stream if `averaging` is `logit`).

    The backward pass takes twice as many. Recomputation by activation checkpointing is not counted.
    """
    kappa = config.max_block_size if ratio is None else int(ratio * config.block_size + 0.5)
    layers = streams_by_layer(config, kappa)
    forward = sum(24 * s * config.n_embd**2 + 2 * s**2 * config.n_embd for s in layers)
    entering = [config.block_size * config.copies, *layers]
    forward += sum(4 * entering[layer] * config.n_embd for layer in config.fork_layers)
    rows = layers[-1] if config.averaging == "logit" else config.block_size
    return 3.0 * (forward + 2 * rows * config.n_embd * config.vocab_size)


def peak_flops(device: torch.device) -> float | None:
    """Return the peak operations per second of `device` in bfloat16, or None if unknown."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for kind, peak in PEAKS.items() if kind in name), None)
