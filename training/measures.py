"""How well a model predicts held-out text: windows to score, and the scores.

Three ways to cut text into windows, all of them scored by `negative_log_likelihood`:

- *packed*: disjoint windows of L over all documents in a row. End-of-text is predicted too, and counted in the nats.
- *rolling*: each document alone, as lm-evaluation-harness does: after end-of-text, every token of the document is
  predicted once, in steps of L; the last window looks back as far as L allows.
- *prefix*: sampled positions of the packed windows, each predicted from nothing but the window up to it. A rule that
  lets later tokens decide over earlier forks has no other honest measure; for `causal` it equals the packed one there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model import Thoughtbubbles
from model.selection import Rule


@dataclass(frozen=True)
class Window:
    """Tokens to score."""

    ids: NDArray[np.integer[Any]]
    """(T+1,): T inputs, and the target of the last."""
    predicted: int
    """How many targets count, from the right."""


@dataclass(frozen=True)
class Score:
    """The likelihood of some text under a model."""

    nats: float
    """Negative log-likelihood, summed."""
    tokens: int
    """Targets that it sums over."""
    bytes: int
    """UTF-8 bytes of the text; 0 where the tokens are a sample."""

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers; NaN for a sample."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


def packed_windows(ids: NDArray[np.integer[Any]], length: int) -> list[Window]:
    """Disjoint windows of at most `length` inputs over ids (n,): each but the first is predicted once."""
    cuts = [ids[start : start + length + 1] for start in range(0, len(ids) - 1, length)]
    return [Window(cut, len(cut) - 1) for cut in cuts]


def rolling_windows(documents: Sequence[Sequence[int]], end_of_text: int, length: int) -> list[Window]:
    """The windows of each document alone, as lm-evaluation-harness cuts them."""
    windows = []
    for document in documents:
        ids = np.array([end_of_text, *document], dtype=np.int64)
        for start in range(0, len(document), length):
            end = min(start + length, len(document))
            windows.append(Window(ids[max(0, end - length) : end + 1], end - start))
    return windows


def prefix_windows(windows: Sequence[Window], count: int, seed: int = 0) -> list[Window]:
    """`count` positions of `windows`, drawn without replacement, each as a window that ends there."""
    ends = [(index, end) for index, window in enumerate(windows) for end in range(2, len(window.ids) + 1)]
    drawn = np.random.default_rng(seed).choice(len(ends), size=min(count, len(ends)), replace=False)
    return [Window(windows[ends[i][0]].ids[: ends[i][1]], 1) for i in drawn]


@torch.inference_mode()
def negative_log_likelihood(model: Thoughtbubbles, windows: Sequence[Window], rule: Rule, batch_size: int) -> float:
    """Nats of all predicted targets of `windows` together, one pass a window, on the model's device."""
    model.eval()
    ordered = sorted(windows, key=lambda window: len(window.ids))  # rows of a batch need little padding
    nats = 0.0
    for start in range(0, len(ordered), batch_size):
        nats += float(_nats(model, ordered[start : start + batch_size], rule))
    return nats


def _nats(model: Thoughtbubbles, windows: Sequence[Window], rule: Rule) -> Tensor:
    device = next(model.parameters()).device
    longest = len(windows[-1].ids)
    ids = torch.from_numpy(np.stack([np.pad(w.ids.astype(np.int64), (0, longest - len(w.ids))) for w in windows]))
    lengths = torch.tensor([len(w.ids) - 1 for w in windows])
    first = lengths - torch.tensor([w.predicted for w in windows])
    position = torch.arange(longest - 1)
    counted = (position >= first[:, None]) & (position < lengths[:, None])
    targets = torch.where(counted, ids[:, 1:], -100).to(device)  # -100: what cross_entropy leaves out
    ragged = None if int(lengths.min()) == longest - 1 else lengths.to(device)
    logits = model(ids[:, :-1].to(device), rule=rule, lengths=ragged)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
