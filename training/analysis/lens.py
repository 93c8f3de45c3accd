"""Read every stream of a text after every layer (the logit lens), and what interventions in forks change.

Letters: T tokens, S streams, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from thoughtbubbles.model import Checkpoint, Fork, ForkBias, Hook, ModelConfig, Selection, check_fork_biases
from thoughtbubbles.model.interventions import Site
from thoughtbubbles.training.analysis.tokens import entropies, fork_counts


class LensRow(NamedTuple):
    """One stream after one layer, read as if it were the token's only one and the layer the last."""

    layer: int
    position: int
    token: str
    stream: int
    """Its index in the token's bubble, from the left; the last is the original."""
    streams: int
    """Streams of the token."""
    P: float
    """exp(c), its weight."""
    entropy: float
    """Of its next-token distribution, nats."""
    likeliest: str
    """The token that it finds likeliest next."""
    probability: float
    """Of that token."""
    loss: float | None
    """-log p of the token that follows, nats; None for the last token."""


class ChangeRow(NamedTuple):
    """One token with and without interventions."""

    position: int
    token: str
    streams: int
    """Its streams after the last fork layer, without interventions."""
    changed_streams: int
    entropy: float
    """Of the next-token distribution, nats."""
    changed_entropy: float
    loss: float | None
    """-log p of the token that follows, nats; None for the last token."""
    changed_loss: float | None
    divergence: float
    """KL(without ‖ with interventions) of the next-token distributions, nats."""
    likeliest: str
    changed_likeliest: str


@torch.inference_mode()
def lens_rows(checkpoint: Checkpoint, token_ids: Sequence[int], selection: Selection) -> list[LensRow]:
    """Return LayerNorm and head of each stream of a text after each layer."""
    model, decode = checkpoint.model, checkpoint.tokenizer.decode
    rows: list[LensRow] = []
    weights: list[float] = []
    following = [*token_ids[1:], None]

    def weigh(score: Tensor, _: Site) -> None:
        weights[:] = score[0].exp().tolist()

    def read(x: Tensor, site: Site) -> None:
        logits = F.linear(model.transformer.ln_f(x[0]), model.transformer.wte.weight)
        log_p, entropy = logits.float().log_softmax(-1), entropies(logits).tolist()
        best = log_p[:, : checkpoint.tokenizer.vocab_size].max(-1)  # further ids only pad the embedding
        for position, (token, target) in enumerate(zip(token_ids, following, strict=True)):
            own = site.of_token(position)
            for place, i in enumerate(range(own.start, own.stop)):
                loss = None if target is None else -float(log_p[i, target])
                rows.append(
                    LensRow(
                        site.layer, position, decode([token]), place, own.stop - own.start, weights[i], entropy[i],
                        decode([int(best.indices[i])]), float(best.values[i].exp()), loss,
                    )
                )  # fmt: skip

    hooks = [Hook(point="score", call=weigh), Hook(point="after_block", call=read)]
    model.streams(_row(checkpoint, token_ids), selection, intervene=hooks)
    return rows


@torch.inference_mode()
def change_rows(
    checkpoint: Checkpoint, token_ids: Sequence[int], selection: Selection, biases: Sequence[ForkBias]
) -> list[ChangeRow]:
    """Return every token of a text without and with interventions in forks."""
    decode = checkpoint.tokenizer.decode
    (log_p, fork), (changed, changed_fork) = (_run(checkpoint, token_ids, selection, each) for each in ((), biases))
    divergence = (log_p.exp() * (log_p - changed)).sum(-1).clamp(min=0).tolist()
    streams = [(fork_counts(each, len(token_ids)) + 1).tolist() for each in (fork, changed_fork)]
    entropy = [entropies(each).tolist() for each in (log_p, changed)]
    best = [each[:, : checkpoint.tokenizer.vocab_size].argmax(-1).tolist() for each in (log_p, changed)]
    losses = [_losses(each, token_ids) for each in (log_p, changed)]
    return [
        ChangeRow(
            t, decode([token]), streams[0][t], streams[1][t], entropy[0][t], entropy[1][t], losses[0][t], losses[1][t],
            divergence[t], decode([best[0][t]]), decode([best[1][t]]),
        )
        for t, token in enumerate(token_ids)
    ]  # fmt: skip


def _losses(log_p: Tensor, token_ids: Sequence[int]) -> list[float | None]:
    """Return -log p of what follows each token, in nats; None for the last."""
    return [*(-float(log_p[t, target]) for t, target in enumerate(token_ids[1:])), None]


def parse_bias(text: str) -> ForkBias:
    """Return the intervention `LAYER:POSITION:CHANGE`, where CHANGE is `never`, `always` or a bias."""
    try:
        layer, position, change = text.split(":")
        if change in ("never", "always"):
            return ForkBias(layer=int(layer), position=int(position), select=change)  # type: ignore[arg-type]
        return ForkBias(layer=int(layer), position=int(position), bias=float(change))
    except ValueError as error:
        raise ValueError(f"fork must be LAYER:POSITION:CHANGE, such as 3:5:never or 3:5:2.5, not {text!r}") from error


def check_biases(biases: Sequence[ForkBias], config: ModelConfig, tokens: int) -> None:
    """Raise `ValueError` for a layer that does not fork, and for a position that a text of so many tokens lacks."""
    try:
        check_fork_biases(biases, config)
    except ValueError as error:
        raise ValueError(f"fork: {error}") from None
    for each in biases:
        if each.position >= tokens:
            raise ValueError(f"fork: position must be below the {tokens} tokens of the text, not {each.position}")


def _run(
    checkpoint: Checkpoint, token_ids: Sequence[int], selection: Selection, biases: Sequence[ForkBias]
) -> tuple[Tensor, Fork]:
    """Return log-probabilities (T,V) and the last fork."""
    model = checkpoint.model
    streams, forks = model.streams(_row(checkpoint, token_ids), selection, intervene=biases)
    return model.readout(streams)[0].float().log_softmax(-1), forks[-1]


def _row(checkpoint: Checkpoint, token_ids: Sequence[int]) -> Tensor:
    return torch.tensor([token_ids], device=checkpoint.model.transformer.wte.weight.device)
