"""The measures: windows as literals, likelihoods against a hand computation."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tests.training.harness import MODEL
from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.model.selection import Rule
from thoughtbubbles.training.measures import (
    Score,
    Window,
    negative_log_likelihood,
    packed_windows,
    prefix_windows,
    rolling_windows,
)

EVERY_RULE: Sequence[Rule] = ("blockwise", "fixed", "dynamic", "causal")
IDS = np.random.default_rng(0).integers(0, MODEL.vocab_size, 50)


def model() -> Thoughtbubbles:
    """One whose forks matter: the weights are several times as large as training starts with."""
    torch.manual_seed(1)
    made = Thoughtbubbles(MODEL, dropout=0.5).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4.0)
    return made


def literal(windows: list[Window]) -> list[tuple[list[int], int]]:
    return [(window.ids.tolist(), window.predicted) for window in windows]


def test_packed_windows_predict_every_id_but_the_first_once() -> None:
    assert literal(packed_windows(np.arange(8), 3)) == [([0, 1, 2, 3], 3), ([3, 4, 5, 6], 3), ([6, 7], 1)]
    assert literal(packed_windows(np.arange(7), 3)) == [([0, 1, 2, 3], 3), ([3, 4, 5, 6], 3)]


def test_rolling_windows_are_those_of_the_evaluation_harness() -> None:
    """End-of-text (9) first; the last window looks back over three inputs, though it predicts one id alone."""
    assert literal(rolling_windows([[1, 2, 3, 4, 5, 6, 7], [], [8]], 9, 3)) == [
        ([9, 1, 2, 3], 3),
        ([3, 4, 5, 6], 3),
        ([4, 5, 6, 7], 1),
        ([9, 8], 1),
    ]


@pytest.mark.numeric
@pytest.mark.parametrize("rule", EVERY_RULE)
def test_likelihood_is_the_sum_over_predicted_targets(rule: Rule) -> None:
    """Ragged windows in batches against one window at a time and log-softmax written out."""
    windows = rolling_windows([IDS[:7].tolist(), IDS[7:46].tolist(), IDS[46:].tolist()], 0, MODEL.block_size)
    subject = model()
    nats = 0.0
    for window in windows:
        logits = subject(torch.from_numpy(window.ids[None, :-1]), rule=rule)[0].detach().double()
        log_p = logits - logits.exp().sum(1, keepdim=True).log()
        for position in range(len(window.ids) - 1 - window.predicted, len(window.ids) - 1):
            nats -= float(log_p[position, window.ids[position + 1]])
    for batch_size in (1, 2, 100):
        assert negative_log_likelihood(subject, windows, rule, batch_size) == pytest.approx(nats, rel=1e-5)


def test_prefix_positions_are_drawn_once_each() -> None:
    windows = packed_windows(IDS, 16)
    everywhere = prefix_windows(windows, 1000)
    assert sorted(literal(everywhere)) == sorted(
        (window.ids[:end].tolist(), 1) for window in windows for end in range(2, len(window.ids) + 1)
    )
    assert len(prefix_windows(windows, 10)) == 10


@pytest.mark.numeric
def test_the_causal_rule_loses_nothing_by_being_incremental() -> None:
    """Summed over every position, prefixes give the packed measure; under the fixed rule they do not."""
    windows = packed_windows(IDS, MODEL.block_size)
    prefixes = prefix_windows(windows, 1000)
    subject = model()
    one_pass = negative_log_likelihood(subject, windows, "causal", 8)
    assert negative_log_likelihood(subject, prefixes, "causal", 8) == pytest.approx(one_pass, rel=1e-5)
    one_pass = negative_log_likelihood(subject, windows, "fixed", 8)
    assert negative_log_likelihood(subject, prefixes, "fixed", 8) != pytest.approx(one_pass, rel=1e-4)


def test_scores_by_hand() -> None:
    score = Score(nats=12 * math.log(2), tokens=6, bytes=4)
    assert score.loss == pytest.approx(2 * math.log(2))
    assert score.perplexity == pytest.approx(4)
    assert score.bits_per_byte == pytest.approx(3)
    assert math.isnan(Score(nats=1.0, tokens=1, bytes=0).bits_per_byte)


def test_a_perplexity_beyond_floats_is_infinite() -> None:
    assert Score(nats=1600.0, tokens=2, bytes=0).perplexity == math.inf
