import pytest
import torch

from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.model.generate import _choose, generate
from thoughtbubbles.model.selection import Rule

PROMPT = [5, 250, 17, 17]


@pytest.fixture
def model(model: Thoughtbubbles) -> Thoughtbubbles:
    """Blocks that outweigh the embedding, so that the likeliest token is not always the last one again."""
    for parameter in model.transformer.h.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    return model


@pytest.mark.parametrize("rule", ["causal", "dynamic", "fixed", "blockwise"])
def test_greedy_takes_the_likeliest_token_after_the_whole_sequence(model: Thoughtbubbles, rule: Rule) -> None:
    made = generate(model, PROMPT, 6, rule=rule, ratio=1.5, temperature=0)
    assert len(set(made)) > 2, "a model that repeats one token would hide a mistake"
    for n, token in enumerate(made):
        logits = model(torch.tensor([PROMPT + made[:n]]), rule=rule, ratio=1.5)
        assert token == int(logits[0, -1].argmax())


def test_a_causal_greedy_pass_over_the_result_predicts_it(model: Thoughtbubbles) -> None:
    """What causal selection gives a token never changes, so one pass sees what every step saw."""
    made = generate(model, PROMPT, 6, temperature=0)
    predicted = model(torch.tensor([PROMPT + made])).argmax(dim=-1)[0]
    assert predicted[len(PROMPT) - 1 : -1].tolist() == made


def test_a_seed_repeats_the_draw_and_another_changes_it(model: Thoughtbubbles) -> None:
    first = generate(model, PROMPT, 8, temperature=3.0, seed=7)
    assert generate(model, PROMPT, 8, temperature=3.0, seed=7) == first
    assert generate(model, PROMPT, 8, temperature=3.0, seed=8) != first
    assert generate(model, PROMPT, 8, temperature=3.0) != first


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    logits = 2 * torch.tensor([0.7, 0.3, 0.0]).log()
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([_choose(logits, 2.0, generator) for _ in range(4000)]).bincount(minlength=3)
    # Six standard deviations of a binomial with 4000 draws and p = 0.7.
    assert abs(int(draws[0]) - 2800) < 6 * 29
    assert draws[2] == 0


@pytest.mark.parametrize("temperature", [1e-38, 1e-46, 1e-320])
def test_the_lowest_temperatures_take_the_likeliest(temperature: float) -> None:
    """In float32 the quotient of two logits was infinite, and their softmax NaN."""
    logits, generator = torch.tensor([0.5, 3.0, 2.9]), torch.Generator().manual_seed(0)
    assert {_choose(logits, temperature, generator) for _ in range(20)} == {1}


def test_generation_ends_with_end_of_text(model: Thoughtbubbles) -> None:
    made = generate(model, PROMPT, 6, temperature=0)
    end = made[2]
    assert generate(model, PROMPT, 6, temperature=0, end_of_text=end) == made[: made.index(end) + 1]


def test_nothing_asked_is_nothing_made(model: Thoughtbubbles) -> None:
    assert generate(model, PROMPT, 0) == []


def test_mistakes_are_named(model: Thoughtbubbles) -> None:
    with pytest.raises(ValueError, match="ids must hold"):
        generate(model, [], 1)
    with pytest.raises(ValueError, match="temperature must be at least 0, not -1"):
        generate(model, PROMPT, 1, temperature=-1)
