"""Compare the study's arms as docs/experiments/language.md plans: intervals for each pair, by documents, Holm."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.runner.intervals import LEVEL, Interval, holm, t_interval, t_test
from experiments.runner.plan import Claim, Result, Study

Found = Mapping[str, Mapping[int, Result]]
"""Reported results by arm, in the order of the study, and seed."""
Word = Literal["holds", "is contradicted", "is equal to within 0.01", "is open", "not measured"]

SMALL = 0.01
"""Nats a token: a difference within it does not matter."""
SAMPLES = 10_000
"""Bootstrap samples."""


class Comparison(NamedTuple):
    """The verdict on a claim that one arm's loss is below another's."""

    claim: Claim
    apart: list[float]
    """The first loss less the second, for each seed that both have."""
    interval: Interval | None
    """95% interval of the mean over seeds, by Student's t; None with fewer than two seeds."""
    p: float | None
    """Two-sided, of the t-test; corrected by Holm over the claims of the study."""
    documents: Interval | None
    """95% interval of the mean over documents, by bootstrap."""
    word: Word

    @property
    def mean(self) -> float:
        """The mean difference; `apart` must not be empty."""
        return statistics.mean(self.apart)


def by_arm(study: Study, size: str, results: Sequence[Result]) -> Found:
    """Return the reported results at a size under the study's present settings."""
    found: dict[str, dict[int, Result]] = {}
    for run in study.runs(results):
        result = next(filter(run.is_of, results), None)
        if run.size == size and run.kind == "final" and result is not None and result["loss"] is not None:
            found.setdefault(run.arm, {})[run.seed] = result
    return found


def differences(found: Found, lower: str, than: str) -> dict[int, float]:
    """Return by seed how far the loss of `lower` is above that of `than`, where both were measured."""
    one, other = found.get(lower, {}), found.get(than, {})
    return {seed: one[seed]["loss"] - other[seed]["loss"] for seed in sorted(one.keys() & other.keys())}


def document_interval(found: Found, lower: str, than: str) -> Interval | None:
    """Return the 95% bootstrap interval over documents of the difference, averaged over the seeds of both arms."""
    seeds = differences(found, lower, than)
    if not seeds:
        return None
    rows = [_documents(found[lower][seed]) - _documents(found[than][seed]) for seed in seeds]
    apart = np.mean(rows, axis=0)
    tokens = np.array(found[lower][min(seeds)]["document_tokens"], dtype=np.float64)
    counts = np.random.default_rng(0).multinomial(len(apart), np.full(len(apart), 1 / len(apart)), SAMPLES)
    low, high = np.quantile(counts @ apart / (counts @ tokens), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def compare(study: Study, found: Found) -> list[Comparison]:
    """Return a comparison for each of the study's claims."""
    apart = [list(differences(found, claim.lower, claim.than).values()) for claim in study.claims]
    corrected = holm([t_test(each) for each in apart])
    return [_comparison(found, claim, seeds, p) for claim, seeds, p in zip(study.claims, apart, corrected, strict=True)]


def _comparison(found: Found, claim: Claim, apart: list[float], p: float | None) -> Comparison:
    interval, documents = t_interval(apart), document_interval(found, claim.lower, claim.than)
    word = _word(interval, p, documents) if apart else "not measured"
    return Comparison(claim, apart, interval, p, documents, word)


def _word(interval: Interval | None, p: float | None, documents: Interval | None) -> Word:
    if p is not None and documents is not None and p < LEVEL:
        if documents[1] < 0:
            return "holds"
        if documents[0] > 0:
            return "is contradicted"
    if interval is not None and max(map(abs, interval)) < SMALL:
        return "is equal to within 0.01"
    return "is open"


def _documents(result: Result) -> NDArray[np.float64]:
    return np.array(result["documents"], dtype=np.float64)
