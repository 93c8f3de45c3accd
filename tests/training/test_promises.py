"""What the README promises of the shipped checkpoint, on one of the held-out documents that its numbers are from.

That document, a State of the Union address, is in the public domain. The whole text takes minutes and is not in
the repository, so its test is slow.
"""

import re
from pathlib import Path

import pytest

from thoughtbubbles.model import Checkpoint, load_checkpoint, shipped_checkpoint
from thoughtbubbles.model.selection import Rule
from thoughtbubbles.training.data.documents import read_documents
from thoughtbubbles.training.evaluate import Row, evaluate

ROOT = Path(__file__).parents[2]
SLICE = Path(__file__).parent / "data" / "held-out.jsonl"
WHOLE = ROOT.parent / "shared" / "corpus" / "val.jsonl.gz"


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """The checkpoint in the repository."""
    return load_checkpoint(shipped_checkpoint())


def packed(checkpoint: Checkpoint, text: Path, rule: Rule, ratio: float | None) -> Row:
    """The first line that `thoughtbubbles evaluate` prints."""
    return next(evaluate(checkpoint, list(read_documents([text])), [rule], 0, 8, ratio=ratio))


# Measured in float64. 5e-4 is half of the last digit that the README gives; float32 differs by less than 1e-7.
@pytest.mark.numeric
@pytest.mark.parametrize(
    ("rule", "ratio", "bits"),
    [("causal", None, 0.86294), ("causal", 1.5, 0.87596), ("causal", 1, 0.98035), ("dynamic", None, 0.86300)],
)
def test_bits_per_byte_of_a_slice(checkpoint: Checkpoint, rule: Rule, ratio: float | None, bits: float) -> None:
    row = packed(checkpoint, SLICE, rule, ratio)
    assert (row.measure, row.score.tokens, row.score.bytes) == ("packed", 454, 2142)
    assert row.score.bits_per_byte == pytest.approx(bits, abs=5e-4)


@pytest.mark.slow
def test_bits_per_byte_and_perplexity_are_those_of_the_readme(checkpoint: Checkpoint) -> None:
    if not WHOLE.exists():
        pytest.skip("the held-out text is not in ../shared/corpus")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    promised = [
        re.search(rf"^\|.*{measure} \| \*\*([\d.]+)\*\*", readme, re.MULTILINE)
        for measure in ("bits per byte", "perplexity")
    ]
    score = packed(checkpoint, WHOLE, "causal", None).score
    assert [found and found[1] for found in promised] == [f"{score.bits_per_byte:.3f}", f"{score.perplexity:.2f}"]
