"""Relate each token's forks to the model's uncertainty about the next token (paper, figure 5)."""

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
    """Its forks after each fork layer."""
    entropy: float
    """Entropy of the model's next-token distribution, nats."""
    regular_entropy: float
    """The same for a regular model; NaN without one."""
    loss: float
    """-log p of the token that follows, nats."""


class Bin(NamedTuple):
    """Tokens with similar entropy."""

    by: str
    """The model whose entropy sorts the tokens: `this model` or `regular model`."""
    tokens: int
    entropy: float
    """Mean entropy, nats."""
    forks: float
    """Mean number of forks after the last fork layer."""
    error: float
    """Standard error of `forks`."""


def token_rows(
    window: int, ids: Tensor, tokenizer: Tokenizer, *, forks: Sequence[Fork], logits: Tensor, regular: Tensor | None
) -> list[TokenRow]:
    """Return the rows of ids (T+1,), given the logits (T,V) of the model, and of a regular one, for the first T."""
    log_p = logits.float().log_softmax(-1)
    loss = -log_p.gather(1, ids[1:, None])[:, 0]
    entropy = entropies(logits).tolist()
    other = [math.nan] * len(entropy) if regular is None else entropies(regular).tolist()
    counts = torch.stack([fork_counts(fork, len(logits)) for fork in forks], dim=1).tolist()
    texts = [tokenizer.decode([token]) for token in ids[:-1].tolist()]
    columns = zip(texts, counts, entropy, other, loss.tolist(), strict=True)
    return [TokenRow(window, i, text, tuple(count), *rest) for i, (text, count, *rest) in enumerate(columns)]


def fork_counts(fork: Fork, tokens: int) -> Tensor:
    """Return (T,) the number of forks of each token of one sequence (B = 1)."""
    return fork.token_index[0].bincount(minlength=tokens)[:tokens] - 1


def entropies(logits: Tensor) -> Tensor:
    """Return the entropies (T,) in nats of logits (T,V)."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).nan_to_num().sum(-1)


def bins(rows: Sequence[TokenRow], count: int) -> list[Bin]:
    """Return at most `count` bins with equally many tokens, by each model's entropy."""
    forks = np.array([row.forks[-1] for row in rows], dtype=float)
    own = _bins("this model", np.array([row.entropy for row in rows]), forks, count)
    regular = np.array([row.regular_entropy for row in rows])
    return own if np.isnan(regular).any() else own + _bins("regular model", regular, forks, count)


def _bins(by: str, entropy: NDArray[np.float64], forks: NDArray[np.float64], count: int) -> list[Bin]:
    parts = [part for part in np.array_split(np.argsort(entropy, kind="stable"), count) if len(part)]
    return [
        Bin(by, len(part), float(entropy[part].mean()), float(forks[part].mean()),
            float(forks[part].std() / math.sqrt(len(part))))
        for part in parts
    ]  # fmt: skip
