"""Tests, intervals and verdicts, against formulas and numbers that do not come from scipy."""

import math

import pytest

from experiments.runner.comparison import Pair, Rules, count_tested, errors_needed, judge
from experiments.runner.intervals import holm, t_interval, t_test
from experiments.runner.plan import Claim

LANGUAGE, TASKS = Rules(least=0.01, equality=True), Rules(least=0.02)


def pair(*apart: float, documents: tuple[float, float] | None = None) -> Pair:
    return Pair(Claim(says="a claim", lower="2l", than="regular"), list(apart), documents)


def test_the_interval_is_student_s_of_these_values_alone() -> None:
    """Three values: 2 degrees of freedom, whose quantile is 4.3027; mean 2, deviation 1."""
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert t_interval([1.0]) is None


@pytest.mark.parametrize("apart", [[1.0, 2.0, 3.0], [-0.3, 0.1, -0.2], [0.01, -0.01, 0.001]])
def test_p_is_two_sided_with_two_degrees_of_freedom(apart: list[float]) -> None:
    """There p = 1 - |t| / √(t² + 2)."""
    mean = sum(apart) / 3
    error = math.sqrt(sum((each - mean) ** 2 for each in apart) / 2 / 3)
    t = abs(mean) / error
    assert t_test(apart) == pytest.approx(1 - t / math.sqrt(t * t + 2))


def test_p_is_two_sided_with_one_degree_of_freedom() -> None:
    """There p = 1 - 2/π · atan |t|, and t of a and b is (a + b) / |a - b|."""
    assert t_test([0.1, 0.3]) == pytest.approx(1 - 2 / math.pi * math.atan(2))


def test_values_without_a_spread_have_no_test_unless_they_are_all_0() -> None:
    assert t_test([0.5, 0.5]) is None
    assert t_test([0.0, 0.0]) == 1.0
    assert t_test([0.5]) is None


def test_holm_multiplies_the_lowest_by_their_number_and_never_falls() -> None:
    assert holm([0.04, None, 0.01, 0.03]) == [pytest.approx(0.06), None, pytest.approx(0.03), pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("tests", [1, 12])
def test_the_errors_that_a_claim_needs_give_the_p_that_holm_asks(tests: int) -> None:
    t = errors_needed(3, tests)
    assert 1 - t / math.sqrt(t * t + 2) == pytest.approx(0.05 / tests)
    assert t == pytest.approx({1: 4.303, 12: 15.44}[tests], abs=0.01)


@pytest.mark.parametrize(
    ("rules", "one", "word", "small"),
    [
        (LANGUAGE, pair(-0.1, -0.101, -0.102, documents=(-0.2, -0.05)), "holds", False),
        (LANGUAGE, pair(-0.005, -0.0051, -0.0052, documents=(-0.01, -0.001)), "holds", True),
        (LANGUAGE, pair(-0.1, -0.101, -0.102, documents=(-0.2, 0.05)), "is open", False),
        (LANGUAGE, pair(0.1, 0.101, 0.102, documents=(0.05, 0.2)), "is contradicted", False),
        (LANGUAGE, pair(-0.001, 0.001, 0.0015, documents=(-0.01, 0.01)), "is equal to within 0.01", True),
        (LANGUAGE, pair(-0.1, documents=(-0.2, -0.05)), "is open", False),
        (LANGUAGE, pair(), "not measured", False),
        (TASKS, pair(-0.1, -0.101, -0.102), "holds", False),
        (TASKS, pair(0.01, 0.0101, 0.0102), "is contradicted", True),
        (TASKS, pair(-0.001, 0.001, 0.0015), "is open", True),
    ],
)
def test_a_verdict_follows_the_plan(rules: Rules, one: Pair, word: str, small: bool) -> None:
    [found] = judge([one], rules)
    assert (found.word, found.small) == (word, small)


def test_holm_counts_the_claims_that_have_a_test() -> None:
    """p of [-1, -1.1, -1.2] is 0.0027 alone: it stands among 12 claims only if the others have no test."""
    clear, single, none = pair(-1.0, -1.1, -1.2, documents=(-2, -0.5)), pair(-1.0, documents=(-2, -0.5)), pair()
    unclear = pair(-1.0, 1.0, 1.1, documents=(-2, 2))
    found = judge([clear, *[single] * 6, *[none] * 5], LANGUAGE)
    assert (found[0].word, count_tested(found)) == ("holds", 1)
    assert found[0].p == pytest.approx(t_test(clear.apart))
    found = judge([clear, *[unclear] * 19], LANGUAGE)
    assert (found[0].word, count_tested(found)) == ("is open", 20)
    assert found[0].p == pytest.approx(20 * (t_test(clear.apart) or 0))


def test_a_verdict_is_settled_where_all_planned_claims_would_not_change_it() -> None:
    clear = pair(-1.0, -1.1, -1.2, documents=(-2, -0.5))  # p = 0.0027
    assert [judge([clear], LANGUAGE, number)[0].settled for number in (0, 18, 19)] == [True, True, False]
    assert holm([0.01, None, 0.04], 12) == [pytest.approx(0.12), None, pytest.approx(0.44)]
    assert judge([pair()], LANGUAGE, 12)[0].settled
