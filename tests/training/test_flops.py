"""The operations that MFU counts, against what torch counts while it computes."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.training.harness import MODEL
from thoughtbubbles.model import ModelConfig, Thoughtbubbles
from thoughtbubbles.training.flops import flops_per_block, peak_flops, streams_by_layer
from thoughtbubbles.training.step import next_token_loss

REGULAR = replace(MODEL, fork_layers=())
FOUR = replace(MODEL, n_layer=5, fork_layers=(0, 1, 3), max_block_size=4 * MODEL.block_size)


@pytest.mark.parametrize(
    ("config", "ratio"),
    [
        (MODEL, None),
        (MODEL, 1.0),
        (MODEL, 1.25),
        (FOUR, None),
        (replace(FOUR, averaging="logit"), None),
        (REGULAR, None),
        (replace(REGULAR, averaging="rightmost", copies=3), None),
        (replace(REGULAR, loops=3), None),
    ],
    ids=["forks", "originals alone", "a smaller ratio", "every layer", "mixture", "regular", "copy-3", "looped"],
)
def test_operations_are_those_that_torch_counts(config: ModelConfig, ratio: float | None) -> None:
    """Attention is computed as two plain products here, without its mask: twice what is needed, three times over."""
    model = Thoughtbubbles(config)
    windows = torch.randint(config.vocab_size, (1, config.block_size + 1))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        next_token_loss(model, windows, ratio).backward()
    kappa = int((config.ratio if ratio is None else ratio) * config.block_size + 0.5)
    masked = sum(2 * streams**2 * config.n_embd for streams in streams_by_layer(config, kappa))
    assert flops_per_block(config, ratio) == counter.get_total_flops() - 3 * masked


def test_streams_double_until_the_budget() -> None:
    L = MODEL.block_size
    assert streams_by_layer(FOUR, FOUR.max_block_size) == [2 * L, 4 * L, 4 * L, 4 * L, 4 * L]
    assert streams_by_layer(FOUR, 3 * L) == [2 * L, 3 * L, 3 * L, 3 * L, 3 * L]
    assert streams_by_layer(FOUR, L) == [L] * 5


def test_a_processor_has_no_stated_peak() -> None:
    assert peak_flops(torch.device("cpu")) is None
