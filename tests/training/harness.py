"""A small corpus and the settings of a run that takes a moment."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from torch import Tensor

from thoughtbubbles.model import ModelConfig
from thoughtbubbles.training.config import TrainConfig

VOCAB = 320
SUBJECTS = ("the cat", "a bubble", "every token", "the old house", "nobody", "a thought")
VERBS = ("forks", "sleeps on", "is not", "remembers", "follows")
TEXTS = [f"{s} {v} {o}.\nThen {o} {v} {s}…" for s in SUBJECTS for v in VERBS for o in SUBJECTS]
HELD_OUT = TEXTS[::40]

MODEL = ModelConfig(
    vocab_size=VOCAB, block_size=16, max_block_size=24, n_layer=2, n_head=2, n_embd=16, fork_layers=(1,)
)
TRAIN = TrainConfig(
    steps=6, batch_size=2, accumulation=2, learning_rate=1e-2, warmup_steps=2, decay_fraction=0.5, dropout=0.1,
    validate_every=4, save_every=100, log_every=2,
)  # fmt: skip

QUIET = replace(TRAIN, dropout=0.0)
"""Without chance, which every rank has its own of."""


def never() -> bool:
    """Return False: the run is never to stop."""
    return False


def stop_after(steps: int) -> Callable[[], bool]:
    """Asks to stop when so many steps are done."""
    asked = iter([False] * steps)
    return lambda: next(asked, True)


def exact_muon() -> AbstractContextManager[object]:
    """Return a context in which Muon orthogonalises in float64, so that its runs compare as closely as AdamW's.

    torch's Muon casts the momentum to bfloat16 and multiplies it 15 times. Each product is rounded to 8 bits, by a
    relative 2**-9 at most, after sums whose order depends on the processor (AMX, AVX-512, AVX2) and on the sharding.
    What two ranks and one process then differ by is a property of the processor, not of our sharding.
    """
    return patch.object(Tensor, "bfloat16", Tensor.double)


def write_json_lines(path: Path, texts: list[str]) -> Path:
    """`texts` as JSON lines."""
    path.write_text("".join(json.dumps({"text": text, "source": "test"}) + "\n" for text in texts), encoding="utf-8")
    return path
