"""Interventions against the rules in plain words, and what they promise: nothing unless they say so, and causality."""

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.model.test_selection import Row, packed, random_budget, random_row, slots_of
from tests.model.test_transformer import CONFIG, REGULAR, RUNS, build, every_averaging, every_rule
from thoughtbubbles.model import Fork, ForkBias, Hook, Intervention, Rule, Selection, StreamEdit, Thoughtbubbles, record
from thoughtbubbles.model.generate import generate
from thoughtbubbles.model.interventions import Point, Select, Site
from thoughtbubbles.model.selection import ALWAYS, GRID, NEVER, forced_candidates, select, select_causal

IDS = torch.tensor([[*RUNS[:11], 2, 9, 4, 16], [5, 17, 1, 2, 2, 2, 9, 0, 3, 18, 6, 6, 7, 8, 1]])
POINTS: tuple[Point, ...] = (
    "before_fork", "fork_logits", "candidate_scores", "before_block", "score", "attention_pattern", "attention_out",
    "after_attention", "mlp_out", "after_block",
)  # fmt: skip


@pytest.fixture
def model() -> Thoughtbubbles:
    return build(CONFIG)


def run(model: Thoughtbubbles, *intervene: Intervention, rule: Rule = "causal") -> tuple[Tensor, list[Fork]]:
    with torch.no_grad():
        return model(IDS, rule=rule, return_forks=True, intervene=intervene)


# The rules, as `ForkBias` tells them, one candidate at a time.

Choices = list[list[int]]
"""For each candidate of each token: 1 always survives, -1 never, 0 is left to the rule."""


def walk(row: Row, choices: Choices, slots: list[int]) -> list[bool]:
    keep: list[bool] = []
    seen: list[tuple[float, int]] = []
    alive = 0
    for candidates, own, limit in zip(row, choices, slots, strict=True):
        keys = [(math.inf if own[i] > 0 else candidates[i], -len(keep) - i) for i in range(len(candidates) - 1)]
        seen += [key for key, choice in zip(keys, own, strict=False) if choice >= 0]
        survivors = {key for key, choice in zip(keys, own, strict=False) if choice > 0}
        for key in sorted((key for key, choice in zip(keys, own, strict=False) if choice == 0), reverse=True):
            if sum(other > key for other in seen) < limit and alive + len(survivors) < limit:
                survivors.add(key)
        keep += [*(key in survivors for key in keys), True]
        alive += len(survivors)
    return keep


def highest(row: Row, choices: Choices, kappa: int) -> list[bool]:
    scores = [score for candidates in row for score in candidates]
    choice = [each for own in choices for each in own]
    forced = {i for i, each in enumerate(choice) if each > 0}
    last = -1
    for candidates in row:
        last += len(candidates)
        forced.add(last)
    others = sorted(
        (i for i, each in enumerate(choice) if i not in forced and each == 0), key=lambda i: (-scores[i], i)
    )
    total = max(len(forced), min(kappa, len(forced) + len(others)))
    chosen = forced | set(others[: total - len(forced)])
    return [i in chosen for i in range(len(scores))]


def random_choices(draw: random.Random, row: Row) -> Choices:
    spread = draw.choice(((0,), (0, 0, 1), (0, 0, -1), (0, 1, -1), (1,), (-1,)))
    return [[0 if i % 2 else draw.choice(spread) for i in range(len(candidates))] for candidates in row]


def as_tensor(choices: list[Choices], like: Tensor) -> Tensor:
    flat = [[each for own in row for each in own] for row in choices]
    return torch.tensor([row + [0] * (like.shape[1] - len(row)) for row in flat], dtype=torch.int8)


@every_rule
def test_forced_and_forbidden_forks_by_hand(rule: Rule) -> None:
    """Random rows, budgets and choices, in padded batches; often more forks are forced than the budget has."""
    draw = random.Random(rule)
    for _ in range(150):
        rows = [random_row(draw) for _ in range(draw.randint(1, 3))]
        choices, (kappa, block_size) = [random_choices(draw, row) for row in rows], random_budget(draw)
        grid, token_index, tokens = packed(rows)
        selection = Selection(rule=rule, max_block_size=kappa, block_size=block_size)
        overrides = as_tensor(choices, grid)
        keep = select(selection, (grid / GRID).float(), token_index, tokens, overrides).tolist()
        for row, choice, kept in zip(rows, choices, keep, strict=True):
            own = math.ceil(len(row) * kappa / block_size) if rule == "dynamic" else kappa
            by_walk = rule == "causal"
            wanted = walk(row, choice, slots_of(len(row), kappa, block_size)) if by_walk else highest(row, choice, own)
            assert kept == wanted + [False] * (len(kept) - len(wanted))


def test_causal_goes_on_from_any_prefix_with_forced_forks() -> None:
    draw = random.Random(7)
    for _ in range(150):
        row = random_row(draw)
        choices, cut = random_choices(draw, row), draw.randrange(len(row))
        slots = torch.tensor([slots_of(len(row), *random_budget(draw))])
        grid, token_index, tokens = packed([row])
        overrides = as_tensor([choices], grid)
        whole, alive = select_causal(grid, token_index, slots, overrides=overrides)
        old, originals = token_index < cut, forced_candidates(token_index, tokens)
        prior = grid.masked_fill(overrides > 0, ALWAYS).masked_fill(originals | (overrides < 0), NEVER)[old]
        before = alive[:, cut - 1] if cut else torch.zeros(1, dtype=torch.int64)
        new = [each[~old][None] for each in (grid, token_index, overrides)]
        keep, after = select_causal(new[0], new[1] - cut, slots[:, cut:], prior[None], before, overrides=new[2])
        assert torch.equal(keep[0], whole[~old])
        assert torch.equal(after, alive[:, cut:])


# Nothing happens unless an intervention says so.


@every_averaging
@every_rule
def test_what_changes_nothing_is_bit_identical(rule: Rule, config: object) -> None:
    model = build(config)  # type: ignore[arg-type]
    seen: dict[tuple[int, Point], Tensor] = {}
    quiet: list[Intervention] = [record(seen, point) for point in POINTS]
    quiet += [ForkBias(layer=layer, position=3) for layer in (0, 2)]
    quiet += [StreamEdit(layer=1, position=2, at="mlp_out"), Hook(point="score", call=lambda c, _: c)]
    wanted, forks = run(model, rule=rule)
    found, again = run(model, *quiet, rule=rule)
    assert torch.equal(found, wanted)
    assert all(torch.equal(a.candidate, b.candidate) for a, b in zip(forks, again, strict=True))
    assert set(seen) == {(i, p) for i in range(4) for p in POINTS[3:]} | {(i, p) for i in (0, 2) for p in POINTS[:3]}


def test_hooks_see_the_quantities_of_the_equations(model: Thoughtbubbles) -> None:
    seen: dict[tuple[int, Point], Tensor] = {}
    _, forks = run(model, *(record(seen, point) for point in POINTS))
    block, norm = model.blocks[2], model.blocks[2].ln_1
    assert torch.equal(seen[2, "before_fork"], seen[1, "after_block"])
    log_p = F.logsigmoid(seen[2, "fork_logits"]).clamp(min=-20)
    assert torch.equal(seen[2, "candidate_scores"], (seen[1, "score"][:, :, None] + log_p).flatten(1))
    assert torch.equal(seen[2, "candidate_scores"], forks[1].candidate_scores)
    assert torch.equal(seen[2, "score"], forks[1].score)
    P = seen[2, "score"].exp()[:, :, None]
    assert torch.equal(seen[2, "after_attention"], seen[2, "before_block"] + P * seen[2, "attention_out"])
    assert torch.equal(seen[2, "after_block"], seen[2, "after_attention"] + P * seen[2, "mlp_out"])
    assert torch.equal(seen[2, "mlp_out"], block.mlp(block.ln_2(seen[2, "after_attention"])))
    weights = seen[2, "attention_pattern"]
    _, _, v = block.attn._heads(norm(seen[2, "before_block"]))
    heads = weights @ (v * P[:, None])
    found = block.attn.c_proj(heads.transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, seen[2, "attention_out"], atol=1e-5, rtol=1e-5)


# What they do.


def test_a_bias_shifts_the_fork_logit_alone(model: Thoughtbubbles) -> None:
    seen: dict[tuple[int, Point], Tensor] = {}
    run(model, record(seen, "fork_logits", 0))
    _, forks = run(model, ForkBias(layer=0, position=4, bias=3.5, row=1))
    logits = seen[0, "fork_logits"].clone()
    logits[1, 4, 0] += 3.5
    assert torch.equal(forks[0].candidate_scores, F.logsigmoid(logits).clamp(min=-20).flatten(1))
    scores, own = forks[0].score[1], forks[0].of_token(4, row=1)
    assert forks[0].token_index[1, own].tolist() == [4] * (own.stop - own.start)
    assert scores[own][-1] == F.logsigmoid(logits[1, 4, 1]), "a kept stream's score does not change"


@every_rule
@pytest.mark.parametrize("choice", ["always", "never"])
def test_all_streams_of_a_token_fork_or_none(model: Thoughtbubbles, rule: Rule, choice: Select) -> None:
    biases = [ForkBias(layer=layer, position=9, select=choice) for layer in (0, 2)]
    forks = run(model, *biases, rule=rule)[1]
    for row in range(2):
        parents = range(9, 10)
        for fork in forks:
            own = fork.of_token(9, row)
            copies = {candidate for candidate in fork.candidate[row, own].tolist() if candidate % 2 == 0}
            assert copies == ({2 * parent for parent in parents} if choice == "always" else set())
            parents = range(own.start, own.stop)


def test_under_causal_earlier_tokens_do_not_notice(model: Thoughtbubbles) -> None:
    wanted, _ = run(model)
    for change in (
        ForkBias(layer=0, position=7, select="never"),
        ForkBias(layer=2, position=7, bias=9.0, select="always"),
        StreamEdit(layer=1, position=7, scale=2.0),
    ):
        found, _ = run(model, change)
        torch.testing.assert_close(found[:, :7], wanted[:, :7], atol=1e-5, rtol=1e-5)
        assert (found[:, 7] - wanted[:, 7]).abs().max() > 1e-3


def test_a_patched_stream_carries_its_run_with_it(model: Thoughtbubbles) -> None:
    """With every stream of a layer replaced by another run's, the rest of the run is that other run's."""
    seen: dict[tuple[int, Point], Tensor] = {}
    wanted, forks = run(model, record(seen, "after_block", 2))
    other = IDS.flip(0)
    biases = [  # the same streams of each token in both runs
        ForkBias(layer=layer, position=position, select="never") for layer in (0, 2) for position in range(15)
    ]
    wanted, forks = run(model, *biases, record(seen, "after_block", 2))
    edits = [
        StreamEdit(layer=2, position=p, at="after_block", replace=seen[2, "after_block"][row, p], row=row)
        for p in range(15)
        for row in range(2)
    ]
    score = Hook(point="score", call=lambda c, _: forks[1].score if c.shape == forks[1].score.shape else None, layer=3)
    with torch.no_grad():
        found = model(other, intervene=[*biases, *edits, score])
    assert torch.equal(found, wanted)


def test_edits_name_streams(model: Thoughtbubbles) -> None:
    biases = [ForkBias(layer=layer, position=5, select="always") for layer in (0, 2)]
    seen: dict[tuple[int, Point], Tensor] = {}
    _, forks = run(model, *biases, record(seen, "before_block", 2))
    own, plain = forks[1].of_token(5), seen[2, "before_block"][0]
    count = own.stop - own.start
    assert count > 2
    for stream, which in (("all", range(count)), ("forks", range(count - 1)), (-1, [count - 1]), (1, [1])):
        edit = StreamEdit(layer=2, position=5, stream=stream, scale=0.5, row=0)  # type: ignore[arg-type]
        run(model, *biases, edit, record(seen, "before_block", 2))
        factor = torch.ones(len(plain), 1)
        factor[own][list(which)] = 0.5
        assert torch.equal(seen[2, "before_block"][0], plain * factor)
    for wrong in (torch.zeros(1, 16), torch.zeros(count + 1, 16), torch.zeros(1)):  # the first would be each stream's
        with pytest.raises(ValueError, match=rf"the shape of replace must be \(16,\) or \({count}, 16\), not \("):
            run(model, *biases, StreamEdit(layer=2, position=5, replace=wrong))
    with pytest.raises(ValueError, match=f"stream {count} does not exist: token 5 has {count} at layer 2"):
        run(model, *biases, StreamEdit(layer=2, position=5, stream=count))


def test_a_replaced_attention_pattern_is_used(model: Thoughtbubbles) -> None:
    """With the identity for a pattern each stream attends to itself alone."""

    def itself(pattern: Tensor, _: Site) -> Tensor:
        return torch.eye(pattern.shape[-1]).expand_as(pattern)

    seen: dict[tuple[int, Point], Tensor] = {}
    run(model, Hook(point="attention_pattern", call=itself, layer=3), *(record(seen, p, 3) for p in POINTS[3:]))
    attn, score = model.blocks[3].attn, seen[3, "score"]
    _, _, v = attn._heads(model.blocks[3].ln_1(seen[3, "before_block"]))
    own = (v * score.exp()[:, None, :, None]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(seen[3, "attention_out"], attn.c_proj(own), atol=1e-5, rtol=1e-5)


def test_every_hook_may_replace_what_it_sees(model: Thoughtbubbles) -> None:
    wanted, _ = run(model)
    for point in POINTS:
        hook = Hook(point=point, call=lambda value, _: 0.9 * value, layer=2)
        assert not torch.allclose(run(model, hook)[0], wanted, atol=1e-4), point


def test_generation_reaches_tokens_to_come(model: Thoughtbubbles) -> None:
    biases = [ForkBias(layer=0, position=p, select="never") for p in range(20)]
    tokens = generate(model, RUNS[:5], 15, temperature=0, intervene=biases)
    sequence = torch.tensor([[*RUNS[:5], *tokens]])
    with torch.no_grad():
        logits = model(sequence, intervene=biases)[0]
    assert logits[4:-1].argmax(-1).tolist() == tokens
    assert tokens != generate(model, RUNS[:5], 15, temperature=0), "a case without a difference shows nothing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (ForkBias(layer=1, position=0), r"layer must be a fork layer of the model \(0, 2\), not 1"),
        (ForkBias(layer=0, position=15), "position must be below the 15 tokens, not 15"),
        (ForkBias(layer=0, position=1, row=2), r"row must be 0 … 1, not 2"),
        (StreamEdit(layer=4, position=1), r"layer must be 0 … 3, not 4"),
        (
            StreamEdit(layer=1, position=2, stream=-1, replace=torch.zeros(5)),
            r"shape of replace must be \(16,\) or \(1, 16\), not \(5,\)",
        ),
        (StreamEdit(layer=1, position=1, at="before_fork"), r"layer must be one of the fork layers \(0, 2\), not 1"),
        (Hook(point="mlp_out", call=lambda x, _: x[:, 1:]), "the hook at mlp_out of layer 0 must return shape"),
        (Hook(point="fork_logits", call=lambda x, _: None, layer=3), "layer must be one of the fork layers"),
    ],
)
def test_mistakes_are_named(model: Thoughtbubbles, change: Intervention, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(model, change)


def test_a_token_has_one_bias_in_a_layer(model: Thoughtbubbles) -> None:
    with pytest.raises(ValueError, match="layer 0, position 3 is there twice"):
        run(model, ForkBias(layer=0, position=3, bias=1.0, row=1), ForkBias(layer=0, position=3, bias=2.0))
    run(model, ForkBias(layer=0, position=3, bias=1.0, row=1), ForkBias(layer=0, position=3, bias=2.0, row=0))
    regular = build(REGULAR)
    with pytest.raises(ValueError, match=r"fork layer of the model \(none\)"):
        run(regular, ForkBias(layer=0, position=3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bias": math.inf}, "bias must be a finite number, not inf"),
        ({"bias": 10**400}, "bias must be a finite number, not 1000"),
        ({"position": -1}, "position must be a whole number, at least 0, not -1"),
        ({"select": "often"}, "select must be one of by_rule, always, never, not 'often'"),
    ],
)
def test_values_are_checked_when_made(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ForkBias(layer=0, position=0), **settings)  # type: ignore[arg-type]
    for made in (lambda: StreamEdit(layer=0, position=0, at="nowhere"), lambda: Hook(point="x", call=lambda *_: None)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="must be one of"):
            made()
