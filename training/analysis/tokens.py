"""Each token's forks beside how uncertain the model is after it, and what holds of them together (paper, figure 5)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thoughtbubbles.model import Fork, Tokenizer


class TokenRow(NamedTuple):
    """One token of the text."""

    window: int
    position: int
    token: str
    forks: tuple[int, ...]
    """Streams beside its original, after each fork layer."""
    entropy: float
    """Of the model's distribution over the next token, nats."""
    regular_entropy: float
    """The same of a regular model; NaN without one."""
    loss: float
    """-log p of the token that follows, nats."""


class Bin(NamedTuple):
    """Tokens of like entropy."""

    by: str
    """Whose entropy: `this model` or `regular model`."""
    tokens: int
    entropy: float
    """Mean, nats."""
    forks: float
    """Mean, after the last fork layer."""
    error: float
    """Standard error of that mean."""


def token_rows(
    window: int, ids: Tensor, tokenizer: Tokenizer, *, forks: Sequence[Fork], logits: Tensor, regular: Tensor | None
) -> list[TokenRow]:
    """The rows of ids (T+1,), of which the first T were read: `logits` (T,V), and a regular model's."""
    log_p = logits.float().log_softmax(-1)
    loss = -log_p.gather(1, ids[1:, None])[:, 0]
    entropy = entropies(logits).tolist()
    other = [math.nan] * len(entropy) if regular is None else entropies(regular).tolist()
    counts = torch.stack([fork_counts(fork, len(logits)) for fork in forks], dim=1).tolist()
    texts = [tokenizer.decode([token]) for token in ids[:-1].tolist()]
    columns = zip(texts, counts, entropy, other, loss.tolist(), strict=True)
    return [TokenRow(window, i, text, tuple(count), *rest) for i, (text, count, *rest) in enumerate(columns)]


def fork_counts(fork: Fork, tokens: int) -> Tensor:
    """(T,) streams that each token of one sequence (B = 1) has beside its original."""
    return fork.token_index[0].bincount(minlength=tokens)[:tokens] - 1


def entropies(logits: Tensor) -> Tensor:
    """(T,) nats, of logits (T,V)."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).nan_to_num().sum(-1)


def bins(rows: Sequence[TokenRow], count: int) -> list[Bin]:
    """At most `count` bins of equally many tokens by each model's entropy."""
    forks = np.array([row.forks[-1] for row in rows], dtype=float)
    made = _bins("this model", np.array([row.entropy for row in rows]), forks, count)
    regular = np.array([row.regular_entropy for row in rows])
    return made if np.isnan(regular).any() else made + _bins("regular model", regular, forks, count)


def _bins(by: str, entropy: NDArray[np.float64], forks: NDArray[np.float64], count: int) -> list[Bin]:
    parts = [part for part in np.array_split(np.argsort(entropy, kind="stable"), count) if len(part)]
    return [
        Bin(by, len(part), float(entropy[part].mean()), float(forks[part].mean()),
            float(forks[part].std() / math.sqrt(len(part))))
        for part in parts
    ]  # fmt: skip
