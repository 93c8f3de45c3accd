"""One step: a single graph for the compiler, and bfloat16 in the matrix products alone."""

from dataclasses import replace

import pytest
import torch

from model import Thoughtbubbles
from tests.training.harness import MODEL, TRAIN, VOCAB
from training.step import TrainStep, next_token_loss

WINDOWS = torch.randint(VOCAB, (2, MODEL.block_size + 1), generator=torch.Generator().manual_seed(0))


def test_the_loss_is_one_graph() -> None:
    """A graph break would slow training down, and nothing else would tell."""
    model = Thoughtbubbles(MODEL)
    compiled = torch.compile(next_token_loss, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(model, WINDOWS), next_token_loss(model, WINDOWS))


def test_the_loss_is_the_mean_over_all_targets() -> None:
    model = Thoughtbubbles(MODEL)
    log_p = model(WINDOWS[:, :-1], rule="blockwise").log_softmax(-1)
    picked = log_p.gather(2, WINDOWS[:, 1:, None])
    torch.testing.assert_close(next_token_loss(model, WINDOWS), -picked.mean())


def test_bfloat16_stays_in_the_matrix_products() -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = Thoughtbubbles(MODEL)
        config = replace(TRAIN, precision=precision, accumulation=1, dropout=0.0)
        losses[precision] = float(TrainStep(model, config, torch.device("cpu"))(0, [WINDOWS]))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=1e-3)
