"""The logit lens against the model's own readout, and what interventions change."""

from dataclasses import replace

import pytest
import torch

from tests.training.test_analysis import FORKING, lively
from thoughtbubbles.model import Checkpoint, ForkBias, Selection, Tokenizer
from thoughtbubbles.training.analysis.lens import change_rows, lens_rows, parse_bias

SELECTION = Selection.of(FORKING, "causal")
IDS = torch.randint(256, (13,), generator=torch.Generator().manual_seed(0))
TEXT: list[int] = IDS.tolist()


@pytest.fixture
def checkpoint() -> Checkpoint:
    """Reads the original of each token alone, so that its last lens is the model's distribution."""
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, "bytes")
    return Checkpoint(model=lively(replace(FORKING, averaging="rightmost")), tokenizer=tokenizer, provenance={})


@pytest.mark.numeric
@torch.no_grad()
def test_the_last_lens_of_an_original_is_the_model_s_distribution(checkpoint: Checkpoint) -> None:
    rows = lens_rows(checkpoint, TEXT, SELECTION)
    logits, forks = checkpoint.model(IDS[None], return_forks=True)
    log_p = logits[0].log_softmax(-1)
    last = [row for row in rows if row.layer == 3]
    present = forks[-1].token_index[0] < len(TEXT)
    assert [row.P for row in last] == pytest.approx(forks[-1].score[0, present].exp().tolist(), abs=1e-6)
    assert [row.position for row in last] == forks[-1].token_index[0, present].tolist()
    originals = [row for row in last if row.stream == row.streams - 1]
    assert len(originals) == len(TEXT)
    for t, row in enumerate(originals):
        assert row.probability == pytest.approx(log_p[t, :257].max().exp().item(), abs=1e-5)
        assert row.entropy == pytest.approx(-(log_p[t].exp() * log_p[t]).sum().item(), abs=1e-4)
        wanted = None if t == len(TEXT) - 1 else pytest.approx(-log_p[t, TEXT[t + 1]].item(), abs=1e-4)
        assert row.loss == wanted
    assert {row.layer for row in rows} == {0, 1, 2, 3}


@pytest.mark.numeric
@torch.no_grad()
def test_changes_are_those_of_two_runs(checkpoint: Checkpoint) -> None:
    biases = [parse_bias("1:5:never"), parse_bias("3:5:never")]
    rows = change_rows(checkpoint, TEXT, SELECTION, biases)
    logits, changed = (checkpoint.model(IDS[None], intervene=each)[0].log_softmax(-1) for each in ((), biases))
    wanted = (logits.exp() * (logits - changed)).sum(-1)
    assert [row.divergence for row in rows] == pytest.approx(wanted.tolist(), abs=1e-5)
    assert max(row.divergence for row in rows[:5]) < 1e-6, "earlier tokens do not notice"
    assert max(row.divergence for row in rows[5:]) > 1e-5
    assert (rows[5].streams, rows[5].changed_streams) == (2, 1)


@pytest.mark.parametrize("text", ["3:5", "a:5:never", "3:5:sometimes", "3:5:inf", "3:-1:never", ""])
def test_mistakes_in_a_fork_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"fork must be LAYER:POSITION:CHANGE, such as .* not"):
        parse_bias(text)
    assert parse_bias("3:5:-2.5") == ForkBias(layer=3, position=5, bias=-2.5)
