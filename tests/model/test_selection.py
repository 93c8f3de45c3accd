"""Every selection rule against a plain walk or sort written from SPEC.md, and the invariants that the rules promise."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from thoughtbubbles.model import ModelConfig, Rule, Selection, budget, selection
from thoughtbubbles.model.config import SelectBy
from thoughtbubbles.model.selection import GRID, NEVER, forced_candidates, on_grid, select, select_causal

Row = list[list[int]]
"""The grid scores of each token's candidates, the forced one last."""

RULES: tuple[Rule, ...] = ("blockwise", "dynamic", "fixed", "causal")
every_rule = pytest.mark.parametrize("rule", RULES)


# The rules as SPEC.md tells them, one candidate at a time.


def slots_of(tokens: int, kappa: int, block_size: int) -> list[int]:
    return [math.ceil(Fraction(length * kappa, block_size)) - length for length in range(1, tokens + 1)]


def walk(row: Row, slots: list[int]) -> tuple[list[bool], list[int]]:
    """The causal rule: from left to right, looking at nothing to the right. Who survives, and `alive` at each token."""
    keep: list[bool] = []
    alive: list[int] = []
    seen: list[tuple[int, int]] = []  # every non-forced candidate so far: its score, then the reversed index
    for candidates, limit in zip(row, slots, strict=True):
        own = [(score, -len(keep) - i) for i, score in enumerate(candidates[:-1])]
        seen += own
        survivors: set[tuple[int, int]] = set()
        before = alive[-1] if alive else 0
        for key in sorted(own, reverse=True):
            if sum(other > key for other in seen) < limit and before + len(survivors) < limit:
                survivors.add(key)
        keep += [key in survivors for key in own] + [True]
        alive.append(before + len(survivors))
    return keep, alive


def highest(row: Row, kappa: int) -> list[bool]:
    """The blockwise rule: the forced, and the highest others, max(T, min(κ, candidates)) in all."""
    scores = [score for candidates in row for score in candidates]
    forced = [i == len(candidates) - 1 for candidates in row for i in range(len(candidates))]
    others = sorted((i for i in range(len(scores)) if not forced[i]), key=lambda i: (-scores[i], i))
    total = max(len(row), min(kappa, len(scores)))
    chosen = set(others[: total - len(row)])
    return [forced[i] or i in chosen for i in range(len(scores))]


def survivors_of(row: Row, rule: Rule, kappa: int, block_size: int) -> list[bool]:
    if rule == "causal":
        return walk(row, slots_of(len(row), kappa, block_size))[0]
    return highest(row, math.ceil(Fraction(len(row) * kappa, block_size)) if rule == "dynamic" else kappa)


# Random candidates, and how the implementation wants them.


def packed(rows: list[Row]) -> tuple[Tensor, Tensor, int]:
    """Grid scores (B,C), token indices (B,C) and T; padding on the right has the best score of all."""
    tokens = max(len(row) for row in rows)
    width = max(sum(map(len, row)) for row in rows)
    flat = [[(score, t) for t, candidates in enumerate(row) for score in candidates] for row in rows]
    both = torch.tensor([row + [(10**6, tokens)] * (width - len(row)) for row in flat]).view(len(rows), width, 2)
    return both[:, :, 0], both[:, :, 1], tokens


def scores_of(grid: Tensor, seed: int = 0) -> Tensor:
    """Float scores anywhere within the grid cell that `grid` names."""
    noise = torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    return ((grid + 0.9 * noise.double()) / GRID).float()


def select_rows(rows: list[Row], rule: Rule, kappa: int, block_size: int) -> list[list[bool]]:
    """`select` on a padded batch, without its padding, which must not be selected."""
    grid, token_index, tokens = packed(rows)
    rule_and_budget = Selection(rule=rule, max_block_size=kappa, block_size=block_size)
    keep = select(rule_and_budget, scores_of(grid), token_index, tokens)
    assert not keep[token_index == tokens].any()
    assert keep.sum(1).max() <= rule_and_budget.capacity(tokens, grid.shape[1] // 2)
    return [kept[: sum(map(len, row))] for kept, row in zip(keep.tolist(), rows, strict=True)]


def random_row(draw: random.Random) -> Row:
    spread = draw.choice((0, 1, 3, 20, 5000))  # most spreads make ties
    return [
        [draw.randint(-spread, 0) for _ in range(2 * draw.choice((1, 1, 2, 4)))] for _ in range(draw.randint(1, 11))
    ]


def random_budget(draw: random.Random) -> tuple[int, int]:
    block_size = draw.randint(1, 8)
    return draw.randint(block_size, 5 * block_size), block_size


def random_batches(seed: int, count: int) -> Iterator[tuple[random.Random, list[Row]]]:
    draw = random.Random(seed)
    for _ in range(count):
        yield draw, [random_row(draw) for _ in range(draw.randint(1, 4))]


def as_rows() -> st.SearchStrategy[list[Row]]:
    """Batches of short rows with coarse scores, so that ties abound."""
    pair = st.tuples(st.integers(-3, 0), st.integers(-3, 0))  # what one stream makes
    token = st.lists(pair, min_size=1, max_size=3).map(lambda pairs: [score for pair in pairs for score in pair])
    return st.lists(st.lists(token, min_size=1, max_size=7), min_size=1, max_size=3)


def as_budget() -> st.SearchStrategy[tuple[int, int]]:
    return st.integers(1, 6).flatmap(lambda length: st.tuples(st.integers(length, 5 * length), st.just(length)))


def after(row: Row, t: int) -> int:
    """How many candidates tokens 0…t have."""
    return sum(len(candidates) for candidates in row[: t + 1])


# The implementation is the definition.


def test_causal_in_one_pass_is_the_walk() -> None:
    for draw, rows in random_batches(seed=1, count=1200):
        grid, token_index, tokens = packed(rows)
        slots = [slots_of(tokens, *random_budget(draw)) for _ in rows]  # rows may have ratios of their own
        keep, alive = select_causal(grid, token_index, torch.tensor(slots))
        for b, row in enumerate(rows):
            wanted, counts = walk(row, slots[b][: len(row)])
            assert keep[b].tolist() == wanted + [False] * (grid.shape[1] - len(wanted))
            assert alive[b].tolist() == counts + counts[-1:] * (tokens - len(row))


def test_causal_goes_on_from_any_prefix() -> None:
    """What a cache keeps of the prefix (every non-forced score, and how many survived) is enough."""
    for draw, rows in random_batches(seed=2, count=800):
        cuts = [draw.randint(0, len(row)) for row in rows]
        cuts[0] = draw.randrange(len(rows[0]))  # at least one row has something left
        slots = [slots_of(len(row), *random_budget(draw)) for row in rows]
        grid, token_index, tokens = packed([row[cut:] for row, cut in zip(rows, cuts, strict=True)])
        rest = [own[cut:] + [10**6] * (tokens - len(own[cut:])) for own, cut in zip(slots, cuts, strict=True)]
        seen = [
            [score for candidates in row[:cut] for score in candidates[:-1]]
            for row, cut in zip(rows, cuts, strict=True)
        ]
        width = max(map(len, seen))
        walked = [walk(row, own) for row, own in zip(rows, slots, strict=True)]
        start = [alive[cut - 1] if cut else 0 for (_, alive), cut in zip(walked, cuts, strict=True)]

        keep, alive = select_causal(
            grid,
            token_index,
            torch.tensor(rest),
            prior=torch.tensor([row + [NEVER] * (width - len(row)) for row in seen], dtype=torch.int64),
            prior_alive=torch.tensor(start),
        )

        for b, (row, cut) in enumerate(zip(rows, cuts, strict=True)):
            wanted, counts = walked[b][0][after(row, cut - 1) :], walked[b][1][cut:]
            assert keep[b].tolist() == wanted + [False] * (grid.shape[1] - len(wanted))
            assert alive[b, : len(counts)].tolist() == counts


@every_rule
def test_select_is_the_definition(rule: Rule) -> None:
    for draw, rows in random_batches(seed=3, count=300):
        kappa, block_size = random_budget(draw)
        assert select_rows(rows, rule, kappa, block_size) == [
            survivors_of(row, rule, kappa, block_size) for row in rows
        ]


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any result had."""

    numel = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("rows_at_once", [1, 3, 7])
def test_comparing_in_chunks_changes_nothing_but_memory(monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    draw = random.Random(4)
    rows = [[[draw.randint(-9, 0) for _ in range(4)] for _ in range(10)] for _ in range(2)]
    slots = [slots_of(10, 7, 3), slots_of(10, 4, 3)]
    grid, token_index, _ = packed(rows)
    with LargestTensor() as whole:
        select_causal(grid, token_index, torch.tensor(slots))
    assert whole.numel == 2 * 40 * 40
    monkeypatch.setattr(selection, "_PAIRS_AT_ONCE", rows_at_once * grid.numel())

    with LargestTensor() as chunks:
        keep, _ = select_causal(grid, token_index, torch.tensor(slots))

    assert chunks.numel == rows_at_once * grid.numel()
    assert keep.tolist() == [walk(row, own)[0] for row, own in zip(rows, slots, strict=True)]


# What the rules promise.


@every_rule
@settings(max_examples=60, deadline=None)
@given(rows=as_rows(), limits=as_budget())
def test_originals_are_kept_within_the_budget(rule: Rule, rows: list[Row], limits: tuple[int, int]) -> None:
    kappa, block_size = limits
    for row, keep in zip(rows, select_rows(rows, rule, kappa, block_size), strict=True):
        originals = [after(row, t) - 1 for t in range(len(row))]
        assert all(keep[i] for i in originals)
        if rule == "causal":
            for t in range(len(row)):
                assert sum(keep[: after(row, t)]) <= budget(t + 1, kappa, block_size)
        else:
            allowed = budget(len(row), kappa, block_size) if rule == "dynamic" else kappa
            assert sum(keep) == max(len(row), min(allowed, len(keep)))


@settings(max_examples=60, deadline=None)
@given(row=as_rows().map(lambda rows: rows[0]), other=as_rows().map(lambda rows: rows[0]), limits=as_budget())
def test_causal_never_looks_right(row: Row, other: Row, limits: tuple[int, int]) -> None:
    """Whatever follows a prefix, or follows nothing, the prefix keeps the same streams."""
    for cut in range(1, len(row) + 1):
        alone, followed = (select_rows([each], "causal", *limits)[0] for each in (row[:cut], row[:cut] + other))
        assert followed[: len(alone)] == alone


@pytest.mark.parametrize("rule", ["blockwise", "dynamic", "fixed"])
def test_the_other_rules_look_right(rule: Rule) -> None:
    """A higher fork of token 1 pushes out token 0's."""
    (before,) = select_rows([[[-2, 0], [-3, 0]]], rule, 3, 2)
    (later,) = select_rows([[[-2, 0], [-1, 0]]], rule, 3, 2)
    assert (before, later) == ([True, True, False, True], [False, True, True, True])


@every_rule
@settings(max_examples=60, deadline=None)
@given(rows=as_rows(), limits=as_budget())
def test_of_equals_the_left_is_the_higher(rule: Rule, rows: list[Row], limits: tuple[int, int]) -> None:
    """Within a token under every rule, and between tokens too: a survivor has every equal to its left beside it.

    Under the causal rule a loser to the left may have found its budget full before there was room.
    """
    for row, keep in zip(rows, select_rows(rows, rule, *limits), strict=True):
        free = [(score, t, after(row, t - 1) + i) for t, own in enumerate(row) for i, score in enumerate(own[:-1])]
        for score, t, i in free:
            equals = [j for s, u, j in free if s == score and j < i and (u == t or rule != "causal")]
            assert not keep[i] or all(keep[j] for j in equals)


@every_rule
@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=8), min_size=1, max_size=3), data=st.data())
def test_at_the_full_ratio_every_candidate_survives(rule: Rule, counts: list[list[int]], data: st.DataObject) -> None:
    """Before the third fork a token has at most 4 streams; with r = 2^3 nothing is deleted (T ≤ L)."""
    score = st.integers(-3, 0)
    rows = [[data.draw(st.lists(score, min_size=2 * n, max_size=2 * n)) for n in row] for row in counts]
    block_size = data.draw(st.integers(max(map(len, rows)), 9))
    for keep in select_rows(rows, rule, 8 * block_size, block_size):
        assert all(keep)


@every_rule
@settings(max_examples=60, deadline=None)
@given(rows=as_rows(), limits=as_budget())
def test_a_row_in_a_padded_batch_selects_as_alone(rule: Rule, rows: list[Row], limits: tuple[int, int]) -> None:
    alone = [select_rows([row], rule, *limits)[0] for row in rows]
    assert select_rows(rows, rule, *limits) == alone


@pytest.mark.parametrize("kappa", range(4, 13))
def test_fixed_is_blockwise(kappa: int) -> None:
    _, (row, *_) = next(random_batches(seed=6, count=1))
    assert select_rows([row], "fixed", kappa, 4) == select_rows([row], "blockwise", kappa, 4)


# Comparing scores.


@every_rule
@pytest.mark.parametrize(("lower", "survivor"), [(0.4, 0), (0.6, 2)])
def test_what_the_grid_does_not_tell_apart_ties(rule: Rule, lower: float, survivor: int) -> None:
    """Two streams of one token, one slot: the left fork has it until it is lower by a cell of the grid."""
    score = torch.tensor([[-1.0 - lower / GRID, -2.0, -1.0, -3.0]])
    one_slot = Selection(rule=rule, max_block_size=2, block_size=1)
    keep = select(one_slot, score, torch.zeros_like(score, dtype=torch.int64), 1)
    assert [i for i in range(4) if keep[0, i]] == [survivor, 3]


def test_grid_values() -> None:
    score = torch.tensor([[0.0, -1.0, -20.0, -0.4 / GRID, -0.6 / GRID, -1.4 / GRID]])
    assert on_grid(score).tolist() == [[0, -65536, -20 * 65536, 0, -1, -1]]
    assert on_grid(torch.tensor([-1.0], dtype=torch.bfloat16)).tolist() == [-65536]


def test_forced_candidates() -> None:
    token_index = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 2, 2, 2, 2]])
    wanted = [[False, True, False, False, False, True], [False, True, False, False, False, False]]
    assert forced_candidates(token_index, 2).tolist() == wanted


# The budget.


@settings(max_examples=200, deadline=None)
@given(length=st.integers(0, 10**6), kappa=st.integers(1, 10**6), block_size=st.integers(1, 10**5))
def test_budget_is_exact(length: int, kappa: int, block_size: int) -> None:
    wanted = math.ceil(Fraction(length * kappa, block_size))
    assert budget(length, kappa, block_size) == wanted
    assert budget(torch.tensor([length]), kappa, block_size).tolist() == [wanted]
    assert budget(torch.tensor([length]), torch.tensor([kappa]), block_size).tolist() == [wanted]


CONFIG = ModelConfig(vocab_size=5, block_size=10, max_block_size=25, n_layer=2, n_head=1, n_embd=2, fork_layers=(0, 1))


@pytest.mark.parametrize(
    ("ratio", "kappa"), [(None, 25), (1, 10), (1.04, 10), (1.05, 11), (2.5, 25), (3.149, 31), (3.15, 32), (4, 40)]
)
def test_a_request_names_its_ratio(ratio: float | None, kappa: int) -> None:
    chosen = Selection.of(CONFIG, "dynamic", ratio)
    assert (chosen.rule, chosen.max_block_size, chosen.block_size) == ("dynamic", kappa, 10)
    assert chosen.budget(3) == math.ceil(Fraction(3 * kappa, 10))


@pytest.mark.parametrize(
    "ratio", [0.999, 0.0, -1.0, math.nan, math.inf, 13421772.9, 1e15, 1e300, pytest.param(10**400, id="10**400")]
)
def test_an_impossible_ratio_is_refused(ratio: float) -> None:
    """Above the limit of `max_block_size`, 2^27, the budget of a long text would not fit an integer of 64 bits."""
    with pytest.raises(ValueError, match=r"^ratio must be from 1 to 13421772, not "):
        Selection.of(CONFIG, "causal", ratio)


def test_the_largest_ratio_keeps_every_fork() -> None:
    assert Selection.of(CONFIG, "causal", 13421772).budget(torch.tensor([1 << 24])).item() > 1 << 24


def test_a_budget_below_one_stream_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^ratio must be at least 1, not 0\.9$"):
        Selection(rule="causal", max_block_size=9, block_size=10)


def chosen_by(by: SelectBy, rule: Rule, tokens: int, kappa: int, candidates_a_token: int = 4) -> Tensor:
    """The survivors (tokens, candidates of a token) of one sequence whose scores fall from left to right."""
    token_index = torch.arange(tokens).repeat_interleave(candidates_a_token)[None]
    score = -torch.arange(token_index.shape[1], dtype=torch.float32)[None]
    limits = Selection(rule=rule, max_block_size=kappa, block_size=tokens, by=by)
    return select(limits, score, token_index, tokens).view(tokens, candidates_a_token)


@every_rule
def test_kept_streams_survive_before_new_forks(rule: Rule) -> None:
    """Of each token's two streams, the second its original: both are kept, and neither fork survives."""
    assert chosen_by("kept", rule, 6, 12).tolist() == [[False, True, False, True]] * 6
    assert chosen_by("score", rule, 6, 12).tolist() != [[False, True, False, True]] * 6


@every_rule
def test_random_survivors_keep_to_the_budget_and_to_no_score(rule: Rule) -> None:
    torch.manual_seed(0)
    drawn = torch.stack([chosen_by("random", rule, 8, 16) for _ in range(300)])
    assert drawn[:, :, 3].all()  # the originals
    assert (drawn.sum((1, 2)) <= 16).all()
    others = drawn[:, :, :3].double().mean((0, 1))
    assert (others - others.mean()).abs().max() < 0.05  # each place as often, whatever its score
    if rule != "causal":
        assert (drawn.sum((1, 2)) == 16).all()
        assert (drawn[:, :, :3].double().mean((0, 2)) - 1 / 3).abs().max() < 0.1  # and each token


def test_a_model_s_way_of_choosing_reaches_its_selection() -> None:
    config = ModelConfig(vocab_size=3, block_size=4, max_block_size=8, n_layer=1, n_head=1, n_embd=2, fork_layers=(0,))
    assert Selection.of(config, "causal").by == "score"
    assert Selection.of(replace(config, select_by="random"), "causal", 1.5).by == "random"


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^rule must be one of blockwise, dynamic, fixed, causal, not 'greedy'$"):
        Selection.of(CONFIG, "greedy")  # type: ignore[arg-type]


def test_noise_decides_between_close_scores_and_never_touches_them() -> None:
    """Gumbel noise of scale 1 on 40 free candidates a little apart: the top no longer always wins, the forced stay."""
    token_index = torch.arange(20).repeat_interleave(3)[None].expand(50, -1)
    score = -0.01 * torch.arange(60.0).expand(50, -1)
    plain = Selection(rule="blockwise", max_block_size=30, block_size=20)
    noisy = [replace(plain, noise=torch.tensor(scale)) for scale in (0.0, 1.0)]
    torch.manual_seed(0)
    chosen, unmoved, moved = (select(selection, score, token_index, 20) for selection in (plain, *noisy))
    assert torch.equal(chosen, unmoved)
    assert (moved.sum(1) == 30).all()
    assert moved[:, 2::3].all()
    share = moved[:, :3].float().mean()  # the highest of all
    assert chosen[:, :3].all()
    assert 0.4 < share < 0.9
    assert len({tuple(row.tolist()) for row in moved}) == 50


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_an_exponential_that_is_zero_makes_no_infinite_noise(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """A candidate with infinite noise, or with NaN where the scale is 0, was the lowest on the comparison grid."""
    monkeypatch.setattr(torch.Tensor, "exponential_", torch.Tensor.zero_)
    token_index, score = torch.arange(5).repeat_interleave(4)[None], torch.arange(-20.0, 0.0)[None]
    plain = Selection(rule="blockwise", max_block_size=10, block_size=5)
    noisy = replace(plain, noise=torch.tensor(scale))
    assert torch.equal(select(noisy, score, token_index, 5), select(plain, score, token_index, 5))
