"""The model reproduces numbers that an independent implementation of the published code computed."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from thoughtbubbles.model import ModelConfig, Thoughtbubbles

TOLERANCE = 2e-5
"""How far the stored float32 numbers may be from the exact ones. Ours in float64 are as good as exact."""
FLOAT32_TOLERANCE = 2 * TOLERANCE
"""Between two float32 results, each off by TOLERANCE at most. By how much depends on the processor's order of sums."""
FOLDER = Path(os.environ.get("THOUGHTBUBBLES_CONFORMANCE", Path(__file__).parents[3] / "shared" / "conformance"))
CASES = [
    pytest.param(folder, case, id=f"{folder.name}-{case['case']}")
    for folder in sorted(FOLDER.glob("*/"))
    for case in json.loads((folder / "cases.json").read_text())
]
AVERAGINGS = {
    "residual": {"averaging": "residual"},
    "residual_norm_before": {"averaging": "residual", "norm_before_averaging": True},
    "logit": {"averaging": "logit"},
    "rightmost": {"averaging": "rightmost"},
}

needs_cases = pytest.mark.skipif(
    not CASES, reason=f"no conformance cases in {FOLDER.name}: set THOUGHTBUBBLES_CONFORMANCE"
)


@needs_cases
@pytest.mark.numeric
@pytest.mark.sample(92)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, FLOAT32_TOLERANCE), (torch.float64, TOLERANCE)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("name", AVERAGINGS)
@pytest.mark.parametrize(("folder", "case"), CASES or [(None, None)])
def test_streams_scores_and_logits(
    folder: Path, case: dict[str, Any], name: str, dtype: torch.dtype, tolerance: float
) -> None:
    config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
    model = Thoughtbubbles(replace(config, **AVERAGINGS[name])).eval()
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    model.to(dtype)
    wanted = load_file(folder / "cases.safetensors")
    n, ratio = case["case"], case["max_block_size"] / config.block_size

    with torch.no_grad():
        logits, forks = model(wanted[f"{n}.ids"], rule=case["rule"], ratio=ratio, return_forks=True)

    assert len(forks) == len(case["streams"])
    for j, fork in enumerate(forks):
        streams = wanted[f"{n}.fork{j}.token_index"].shape[1]
        assert torch.equal(fork.token_index[:, :streams], wanted[f"{n}.fork{j}.token_index"])
        assert (fork.token_index[:, streams:] == logits.shape[1]).all(), "what is left over must be padding"
        assert_near(fork.score[:, :streams], wanted[f"{n}.fork{j}.score"], tolerance)
    assert_near(logits, wanted[f"{n}.logits.{name}"], tolerance)


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), atol=tolerance, rtol=0)
