"""What is said of two arms, held to numbers that a person can add up."""

import json
from typing import Any

import pytest

from benchmarks.study_compare import by_arm, deviation, differences, judge, losses, spread
from benchmarks.study_plan import Claim, Study
from tests.benchmarks.harness import result


def claim(lower: str, than: str) -> Claim:
    return Claim(says="", lower=lower, than=than, paper="")


def runs(study: Study, **arms: list[float]) -> list[dict[str, Any]]:
    """Of each arm's first seeds, with these losses."""
    return [result(study, arm.lstrip("_"), seed, loss) for arm, told in arms.items() for seed, loss in enumerate(told)]


def test_differences_are_between_equal_seeds() -> None:
    assert differences({0: 3.0, 1: 2.0, 4: 1.0}, {1: 2.5, 0: 2.75, 2: 9.0}) == [0.25, -0.5]


@pytest.mark.parametrize(
    ("forks", "word"),
    [
        ([3.3, 3.4], "holds"),  # apart by -0.2 and -0.1: deviation 0.0707, error 0.05, mean 0.15
        ([3.7, 3.6], "does not hold"),
        ([3.49, 3.1], "undecided"),  # both below, mean 0.205 and error 0.195
        ([3.4, 3.6], "undecided"),
        ([3.3], "undecided"),  # of one seed, beside none that has two, nobody knows the noise
        ([], "not measured"),
    ],
)
def test_a_claim_holds_where_every_seed_says_so_beyond_their_noise(study: Study, forks: list[float], word: str) -> None:
    found = by_arm(study, runs(study, regular=[3.5, 3.5], _2l=forks))
    told = judge(found, claim("2l", "regular"))
    assert told.word == word
    assert told.apart == pytest.approx([each - 3.5 for each in forks])


def test_noise_is_pooled_so_that_one_seed_can_be_judged(study: Study) -> None:
    """`regular` and `2l` differ by 0.1 and 0.3, deviation 0.1414; `noise` has one seed, which `regular` has not."""
    lines = runs(study, regular=[3.5, 3.5], _2l=[3.4, 3.2])
    found = dict(by_arm(study, lines))
    found["noise"] = {1: result(study, "noise", 5, 3.0)}
    assert deviation(found, claim("2l", "regular")) == pytest.approx(0.02**0.5)
    told = judge(found, claim("noise", "regular"))
    assert told.word == "holds"
    assert told.error == pytest.approx(0.02**0.5)
    found["noise"][1]["loss"] = 3.3
    assert judge(found, claim("noise", "regular")).word == "undecided"


def test_noise_between_two_rules_of_one_model_is_that_of_such_differences(study: Study) -> None:
    lines = runs(study, regular=[3.5, 9.5], _2l=[3.4, 3.2])
    for line, dynamic in zip(lines[2:], (0.01, 0.03), strict=True):
        line["rules"] = {"blockwise": 3.0, "dynamic": 3.0 + dynamic, "fixed": 3.0, "causal": 3.0}
    assert deviation(by_arm(study, lines), claim("2l:dynamic", "2l:fixed")) == pytest.approx(0.0002**0.5)


def test_a_rule_s_loss_is_the_whole_text_s_and_what_the_rule_adds_at_its_positions(study: Study) -> None:
    lines = runs(study, regular=[3.5], _2l=[3.4])
    lines[0]["rules"] = {"causal": 3.1}
    lines[1]["rules"] = {"blockwise": 3.0, "dynamic": 3.25}
    found = by_arm(study, lines)
    assert losses(found, "2l:dynamic") == {0: pytest.approx(3.65)}
    assert losses(found, "regular:causal") == {0: pytest.approx(3.5)}
    assert losses(found, "regular:dynamic") == losses(found, "noise:causal") == {}


def test_results_under_other_settings_are_left_out(study: Study) -> None:
    stale = json.loads(json.dumps(result(study, "2l", 0, 1.0)))
    stale["settings"]["model"]["n_layer"] = 9
    assert losses(by_arm(study, [stale, *runs(study, _2l=[3.4])]), "2l") == {0: 3.4}


def test_spread_is_the_sample_s() -> None:
    assert spread([1.0, 2.0, 3.0]) == "2.0000 ± 1.0000"
    assert spread([0.5], sign=True) == "+0.5000"
    assert spread([]) == "–"
