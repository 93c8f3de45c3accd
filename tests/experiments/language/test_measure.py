"""Losses by document are those of the whole text, token by token."""

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.language.measure import by_document, token_nats
from thoughtbubbles.model import ModelConfig, Thoughtbubbles
from thoughtbubbles.training.data.token_file import read_tokenizer, read_tokens
from thoughtbubbles.training.measures import negative_log_likelihood, packed_windows


@pytest.fixture(scope="module")
def model() -> Thoughtbubbles:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=320, block_size=16, max_block_size=24, n_layer=2, n_head=2, n_embd=16, fork_layers=(0, 1)
    )
    return Thoughtbubbles(config).eval()


@pytest.mark.parametrize("rule", ["causal", "blockwise"])
def test_token_nats_sum_to_the_loss_of_packed_windows(model: Thoughtbubbles, data: Path, rule: str) -> None:
    ids = read_tokens(data / "english", "val")
    nats = token_nats(model, ids, rule)  # type: ignore[arg-type]
    assert nats.shape == (len(ids) - 1,)
    assert len(nats) % 16  # the last window is shorter
    want = negative_log_likelihood(model, packed_windows(ids, 16), rule, 7)  # type: ignore[arg-type]
    assert nats.sum() == pytest.approx(want, rel=1e-5)


def test_a_document_s_nats_are_those_of_its_tokens(model: Thoughtbubbles, data: Path) -> None:
    ids = np.asarray(read_tokens(data / "english", "val"))
    nats = token_nats(model, ids, "causal")
    found = by_document(model, data / "english", "causal")
    starts = np.flatnonzero(ids == read_tokenizer(data / "english").end_of_text)
    assert len(starts) == 6
    assert found["tokens"] == np.diff([1, *starts[1:], len(ids)]).tolist()
    second = nats[starts[1] - 1 : starts[2] - 1]
    assert found["nats"][1] == pytest.approx(second.sum(), abs=1e-3)
    assert found["loss"] == pytest.approx(nats.mean(), abs=1e-6)
