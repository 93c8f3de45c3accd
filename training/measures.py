"""Score how well a model predicts held-out text, in windows of tokens.

There are three ways to cut text into windows; `negative_log_likelihood` scores all of them:

- *packed*: disjoint windows of L over the concatenated documents. End-of-text is predicted too, and counted.
- *rolling*: each document separately, as lm-evaluation-harness does: after end-of-text, every token of the document is
  predicted once, in steps of L; the last window starts as early as L allows.
- *prefix*: sampled positions of the packed windows, each predicted from only the window up to it. It is the only fair
  measure for a rule under which later tokens affect earlier forks; for `causal` it equals the packed measure at these
  positions. `blockwise` has no meaning without the whole block, so it predicts the same positions from whole windows.
  The four rules then compare as in the paper's figure 6.
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
    """Number of scored targets: the last ones before the `following`."""
    following: int = 0
    """Targets at the right end that are not scored; the model still reads them."""
    prompt: NDArray[np.unsignedinteger[Any]] | None = None
    """(T+1,): 1 at prompt tokens, which are not scored either; None: no prompt."""

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(T,): which targets are scored."""
        end = len(self.ids) - 1 - self.following
        position = np.arange(len(self.ids) - 1)
        counted = (position >= end - self.predicted) & (position < end)
        return counted if self.prompt is None else counted & (self.prompt[1:] == 0)


class Likelihood(NamedTuple):
    """The likelihood of one window's scored targets."""

    nats: float
    """Summed negative log-likelihood."""
    greedy: bool
    """Whether each target was the most likely token; True without targets."""


@dataclass(frozen=True)
class Score:
    """The likelihood of a text under a model."""

    nats: float
    """Summed negative log-likelihood."""
    tokens: int
    """Number of scored targets."""
    bytes: int
    """UTF-8 bytes of the text; 0 for a sample of its tokens."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite above the largest float."""
        return perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte, which is comparable between tokenizers; NaN for a sample."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


def perplexity(loss: float) -> float:
    """Return exp(loss); infinite above the largest float."""
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


def packed_windows(ids: NDArray[np.integer[Any]], length: int) -> list[Window]:
    """Return disjoint windows of at most `length` inputs over ids (n,); each token but the first is predicted once."""
    cuts = [ids[start : start + length + 1] for start in range(0, len(ids) - 1, length)]
    return [Window(cut, len(cut) - 1) for cut in cuts]


def rolling_windows(documents: Sequence[Sequence[int]], end_of_text: int, length: int) -> list[Window]:
    """Return the windows of each document separately, cut as lm-evaluation-harness does."""
    windows = []
    for document in documents:
        ids = np.array([end_of_text, *document], dtype=np.int64)
        for start in range(0, len(document), length):
            end = min(start + length, len(document))
            windows.append(Window(ids[max(0, end - length) : end + 1], end - start))
    return windows


def prefix_windows(windows: Sequence[Window], count: int, seed: int = 0) -> list[Window]:
    """Draw `count` positions of `windows` without replacement; return for each a window that ends there."""
    return [Window(windows[index].ids[: end + 1], 1) for index, end in _positions(windows, count, seed)]


def whole_windows(windows: Sequence[Window], count: int, seed: int = 0) -> list[Window]:
    """Return for each position of `prefix_windows` its whole window, in which only that position is scored."""
    drawn = ((windows[index].ids, end) for index, end in _positions(windows, count, seed))
    return [Window(ids, 1, following=len(ids) - 1 - end) for ids, end in drawn]


def _positions(windows: Sequence[Window], count: int, seed: int) -> list[tuple[int, int]]:
    """Draw `count` pairs: the index of a window, and the index of a target among its ids."""
    ends = [(index, end) for index, window in enumerate(windows) for end in range(1, len(window.ids))]
    drawn = np.random.default_rng(seed).choice(len(ends), size=min(count, len(ends)), replace=False)
    return [ends[i] for i in drawn]


def negative_log_likelihood(
    model: Thoughtbubbles, windows: Sequence[Window], rule: Rule, batch_size: int, ratio: float | None = None
) -> float:
    """Return the summed nats of all scored targets of `windows`."""
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
    """Return the likelihood of each window, by one forward pass on the model's device; `ratio` None: the model's own.

    `progress` shows a bar if standard error is a terminal.
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
    targets = torch.where(counted, ids[:, 1:], -100).to(device)  # -100: ignored by cross_entropy
    ragged = None if int(lengths.min()) == longest - 1 else lengths.to(device)
    logits = model(ids[:, :-1].to(device), rule=rule, ratio=ratio, lengths=ragged)
    nats = F.cross_entropy(logits.transpose(1, 2).float(), targets, reduction="none").sum(1, dtype=torch.float64)
    greedy = ((logits.argmax(-1) == targets) | (targets == -100)).all(1)
    return list(map(Likelihood, nats.tolist(), greedy.tolist()))
