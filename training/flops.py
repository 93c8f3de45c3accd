"""How many floating-point operations training takes, and how many a device could do."""

import torch

from thoughtbubbles.model import ModelConfig

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Operations a second in bfloat16 without sparsity, as NVIDIA states them for the SXM boards."""


def streams_by_layer(config: ModelConfig, kappa: int) -> list[int]:
    """The streams that every layer computes for a block of L tokens under `blockwise` with budget κ."""
    streams, layers = config.block_size * config.copies, []
    for layer in range(config.n_layer):
        if layer in config.fork_layers:
            streams = max(config.block_size, min(kappa, 2 * streams))
        layers.append(streams)
    return layers * config.loops


def flops_per_block(config: ModelConfig, ratio: float | None = None) -> float:
    """Operations to learn from one block of L tokens at ratio r (None: the model's own); a multiply-add is two.

    Of the streams that are really computed: under `blockwise` a layer l has S_l of them, whatever the text, which is
    max(L, min(κ, 2 · S_{l-1})) where it forks and S_{l-1} where not. The forward pass takes

    - 24 · S_l · D² in the matrices of a layer: 3D² query, key and value, D² out, 8D² MLP, twice each;
    - 2 · S_l² · D in its attention: queries by keys and weights by values, half of each being causally masked;
    - 4 · S_{l-1} · D in a fork's two logits, for the streams that arrive;
    - 2 · D · V in the head for each token (for each stream where `averaging` is `logit`).

    The backward pass takes twice as many. What activation checkpointing computes again is not counted.
    """
    kappa = config.max_block_size if ratio is None else int(ratio * config.block_size + 0.5)
    layers = streams_by_layer(config, kappa)
    forward = sum(24 * s * config.n_embd**2 + 2 * s**2 * config.n_embd for s in layers)
    arriving = [config.block_size * config.copies, *layers]
    forward += sum(4 * arriving[layer] * config.n_embd for layer in config.fork_layers)
    rows = layers[-1] if config.averaging == "logit" else config.block_size
    return 3.0 * (forward + 2 * rows * config.n_embd * config.vocab_size)


def peak_flops(device: torch.device) -> float | None:
    """Operations a second that `device` could do in bfloat16; None where that is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for kind, peak in PEAKS.items() if kind in name), None)
