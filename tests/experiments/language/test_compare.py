"""What is said of two arms, against numbers that a person can add up."""

from typing import Any

import numpy as np
import pytest

from experiments.language.compare import compare, differences, document_interval
from experiments.runner.found import by_arm
from experiments.runner.plan import Study
from tests.experiments.harness import result


def documents(loss: float) -> dict[str, Any]:
    """Two documents of 100 tokens each, the second harder by 0.2."""
    return {"documents": [100 * (loss - 0.1), 100 * (loss + 0.1)], "document_tokens": [100, 100]}


def lines(study: Study, **arms: list[float]) -> list[dict[str, Any]]:
    """Return tuning results, which choose the rate 0.001, and reported ones with these losses by seed."""
    found = [result(run, run.training.learning_rate) for arm in study.arms for run in study.tuning_runs("small", arm)]
    for arm, losses in arms.items():
        for seed, loss in enumerate(losses):
            run = study.run("small", arm.lstrip("_"), "final", seed, 1e-3)
            found.append(result(run, loss, **documents(loss)))
    return found


def test_differences_are_between_equal_seeds(study: Study) -> None:
    found = by_arm(study, "small", lines(study, regular=[3.0, 2.5], _2l=[2.75]))
    assert differences(found, "2l", "regular") == {0: -0.25}
    assert differences(found, "2l", "random") == {}
    assert by_arm(study, "wide", lines(study, regular=[3.0])) == {}


def test_documents_are_resampled_with_their_own_differences(study: Study) -> None:
    results = lines(study, regular=[3.0, 3.0], _2l=[2.9, 2.9])
    found = by_arm(study, "small", results)
    assert document_interval(found, "2l", "regular") == pytest.approx((-0.1, -0.1))
    for line in results:
        if line["arm"] == "2l" and "documents" in line:
            line["documents"] = [260.0, 320.0]  # -0.3 a token on the first document and +0.1 on the second
    assert document_interval(found, "2l", "regular") == pytest.approx((-0.3, 0.1))


def test_the_interval_over_documents_is_that_of_a_ratio_of_sums(study: Study) -> None:
    """With many documents: R ± 1.96 standard errors of a ratio R = Σd / Σt, which are √Σ(d - R·t)² / Σt."""
    random = np.random.default_rng(1)
    tokens = random.integers(20, 900, 341).astype(float)
    apart = tokens * random.normal(-0.02, 0.1, 341)
    results = lines(study, regular=[3.0], _2l=[3.0])
    for line in results:
        if "documents" in line:
            line["documents"] = (3 * tokens + (line["arm"] == "2l") * apart).tolist()
            line["document_tokens"] = tokens.tolist()
    ratio = apart.sum() / tokens.sum()
    error = 1.96 * np.sqrt(((apart - ratio * tokens) ** 2).sum()) / tokens.sum()
    interval = document_interval(by_arm(study, "small", results), "2l", "regular")
    assert interval == pytest.approx((ratio - error, ratio + error), abs=0.06 * error)


@pytest.mark.parametrize(
    ("forks", "word"),
    [
        ([2.9, 2.901], "holds"),
        ([3.1, 3.101], "is contradicted"),
        ([2.9, 3.0], "is open"),
        ([2.9], "is open"),
        ([2.9996, 3.0004], "is equal to within 0.01"),
        ([3.0, 3.0], "is equal to within 0.01"),
        ([], "not measured"),
    ],
)
def test_a_claim_holds_where_seeds_and_documents_say_so(study: Study, forks: list[float], word: str) -> None:
    results = lines(study, regular=[3.0, 3.0], _2l=forks)
    [found] = compare(study, "small", by_arm(study, "small", results))
    assert found.word == word
    assert found.apart == pytest.approx([each - 3.0 for each in forks])
