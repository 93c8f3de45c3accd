"""How well a model predicts held-out text: windows to score, and the scores.

Three ways to cut text into windows, all of them scored by `negative_log_likelihood`:

- *packed*: disjoint windows of L over all documents in a row. End-of-text is predicted too, and counted in the nats.
- *rolling*: each document alone, as lm-evaluation-harness does: after end-of-text, every token of the document is
  predicted once, in steps of L; the last window looks back as far as L allows.
- *prefix*: sampled positions of the packed windows, each predicted from nothing but the window up to it. A rule that
  lets later tokens decide over earlier forks has no other honest measure; for `causal` it equals the packed one there.
  `blockwise`, which has no meaning without the whole block, predicts the same positions from whole windows, so that
  the four rules stand side by side as in the paper's figure 6.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from tqdm import tqdm

from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.model.selection import Rule


@dataclass(frozen=True)
class Window:
    """Tokens to score."""

    ids: NDArray[np.integer[Any]]
    """(T+1,): T inputs, and the target of the last."""
    predicted: int
    """How many targets count, from the right."""
    following: int = 0
    """Targets at the right end that are left out of the count, the window being read to its end nonetheless."""
    given: NDArray[np.unsignedinteger[Any]] | None = None
    """(T+1,): 1 at tokens that are left out of it too, being only read; None for none."""

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(T,): which targets count."""
        end = len(self.ids) - 1 - self.following
        position = np.arange(len(self.ids) - 1)
        counted = (position >= end - self.predicted) & (position < end)
        return counted if self.given is None else counted & (self.given[1:] == 0)


class Likelihood(NamedTuple):
    """Of one window's predicted targets."""

    nats: float
    """Negative log-likelihood, summed."""
    greedy: bool
    """Whether each target was the likeliest token (also where none is predicted)."""


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
    return [Window(windows[index].ids[: end + 1], 1) for index, end in _positions(windows, count, seed)]


def whole_windows(windows: Sequence[Window], count: int, seed: int = 0) -> list[Window]:
    """The positions of `prefix_windows`, each as the whole window that it stands in."""
    drawn = ((windows[index].ids, end) for index, end in _positions(windows, count, seed))
    return [Window(ids, 1, following=len(ids) - 1 - end) for ids, end in drawn]


def _positions(windows: Sequence[Window], count: int, seed: int) -> list[tuple[int, int]]:
    """`count` pairs: which window, and the place of a target among its ids."""
    ends = [(index, end) for index, window in enumerate(windows) for end in range(1, len(window.ids))]
    drawn = np.random.default_rng(seed).choice(len(ends), size=min(count, len(ends)), replace=False)
    return [ends[i] for i in drawn]


def negative_log_likelihood(
    model: Thoughtbubbles, windows: Sequence[Window], rule: Rule, batch_size: int, ratio: float | None = None
) -> float:
    """Nats of all predicted targets of `windows` together."""
    return math.fsum(each.nats for each in likelihoods(model, windows, rule, batch_size, ratio))


@torch.inference_mode()
def likelihoods(
    model: Thoughtbubbles,
    windows: Sequence[Window],
    rule: Rule,
    batch_size: int,
    ratio: float | None = None,
    *,
    progress: bool = False,
) -> list[Likelihood]:
    """The likelihood of each of `windows`, one pass a window, on the model's device; `ratio` None: the model's own.

    `progress` draws a bar where there is a terminal.
    """
    model.eval()
    order = sorted(range(len(windows)), key=lambda i: len(windows[i].ids))  # rows of a batch need little padding
    found: dict[int, Likelihood] = {}
    for start in tqdm(range(0, len(order), batch_size), leave=False, disable=None if progress else True):
        rows = order[start : start + batch_size]
        found.update(zip(rows, _likelihoods(model, [windows[i] for i in rows], rule, ratio), strict=True))
    return [found[i] for i in range(len(windows))]


def _likelihoods(model: Thoughtbubbles, windows: Sequence[Window], rule: Rule, ratio: float | None) -> list[Likelihood]:
    device = next(model.parameters()).device
    longest = len(windows[-1].ids)
    ids = torch.from_numpy(np.stack([np.pad(w.ids.astype(np.int64), (0, longest - len(w.ids))) for w in windows]))
    lengths = torch.tensor([len(w.ids) - 1 for w in windows])
    counted = torch.from_numpy(np.stack([np.pad(w.counted, (0, longest - len(w.ids))) for w in windows]))
    targets = torch.where(counted, ids[:, 1:], -100).to(device)  # -100: what cross_entropy leaves out
    ragged = None if int(lengths.min()) == longest - 1 else lengths.to(device)
    logits = model(ids[:, :-1].to(device), rule=rule, ratio=ratio, lengths=ragged)
    nats = F.cross_entropy(logits.transpose(1, 2).float(), targets, reduction="none").sum(1, dtype=torch.float64)
    greedy = ((logits.argmax(-1) == targets) | (targets == -100)).all(1)
    return list(map(Likelihood, nats.tolist(), greedy.tolist()))
