"""Compare the study's arms as docs/experiments/language.md plans: pairs of losses, and intervals over documents."""

import statistics
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from experiments.runner.comparison import Comparison, Pair, Rules, judge
from experiments.runner.found import REGULAR, Found, planned_claims
from experiments.runner.intervals import LEVEL, Interval
from experiments.runner.plan import Result, Study

RULES = Rules(least=0.01, equality=True)
"""Nats a token."""
SAMPLES = 10_000
"""Bootstrap samples."""


def compare(study: Study, size: str, found: Found) -> list[Comparison]:
    """Return a comparison at a size for each of the study's claims."""
    return judge(pairs(study, found), RULES, planned_claims(study, size))


def pairs(study: Study, found: Found) -> list[Pair]:
    """Return the differences of the two arms of each of the study's claims."""
    return [
        Pair(
            claim,
            list(differences(found, claim.lower, claim.than).values()),
            document_interval(found, claim.lower, claim.than),
        )
        for claim in study.claims
    ]


def differences(found: Found, lower: str, than: str) -> dict[int, float]:
    """Return by seed how far the loss of `lower` is above that of `than`, where both were measured."""
    one, other = found.get(lower, {}), found.get(than, {})
    return {seed: one[seed]["loss"] - other[seed]["loss"] for seed in sorted(one.keys() & other.keys())}


def gaps_by_tokens(found: Found, arm: str) -> dict[float, float]:
    """Return by million tokens learned from how far an arm is above `regular`, under the rule of training.

    A gap is the mean over the seeds of both; there is none where they share no seed.
    """
    seeds, regular = found.get(arm, {}), found.get(REGULAR, {})
    shared = sorted(seeds.keys() & regular.keys())
    if not shared:
        return {}
    first = seeds[shared[0]]
    steps = [step for step in first["curve"] if all(step in regular[seed]["curve"] for seed in shared)]
    tokens = first["tokens"] / first["settings"]["training"]["steps"] / 1e6
    return {
        int(step) * tokens: statistics.mean(seeds[s]["curve"][step] - regular[s]["curve"][step] for s in shared)
        for step in steps
    }


def document_interval(found: Found, lower: str, than: str) -> Interval | None:
    """Return the 95% bootstrap interval over documents of the difference, averaged over the seeds of both arms.

    Documents are drawn whole and paired: a draw has the same documents of both arms, each weighing as many tokens as it
    has.
    """
    seeds = differences(found, lower, than)
    if not seeds:
        return None
    apart = np.mean([_documents(found[lower][seed]) - _documents(found[than][seed]) for seed in seeds], axis=0)
    tokens = np.array(found[lower][min(seeds)]["document_tokens"], dtype=np.float64)
    counts = _draws(len(apart))
    low, high = np.quantile(counts @ apart / (counts @ tokens), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


@lru_cache(maxsize=2)
def _draws(documents: int) -> NDArray[np.float64]:
    """Return how often each document is in each sample: the same samples for all pairs."""
    counts = np.random.default_rng(0).multinomial(documents, np.full(documents, 1 / documents), SAMPLES)
    return counts.astype(np.float64)


def _documents(result: Result) -> NDArray[np.float64]:
    return np.array(result["documents"], dtype=np.float64)
