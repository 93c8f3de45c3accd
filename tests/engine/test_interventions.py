"""Requests with interventions in their forks give what the naive forward with the same interventions gives."""

import math
import random
from dataclasses import replace

import pytest
import torch

from tests.engine.conftest import MakeModel
from thoughtbubbles.engine import Completion, Engine, EngineConfig, InvalidRequest, SamplingParams, TokenEvent
from thoughtbubbles.engine.config import ExecutorKind
from thoughtbubbles.model import Fork, ForkBias, ModelConfig, Rule, Thoughtbubbles, Tokenizer
from thoughtbubbles.model.generate import generate
from thoughtbubbles.model.interventions import within

TOLERANCE = 1e-4
LENGTH = 10
SHAPES: dict[str, dict[str, object]] = {
    "three forks": {},
    "layer 0 forks, odd budget": {"fork_layers": (0, 3), "block_size": 48, "max_block_size": 71},
    "every layer forks, mixture of softmaxes": {"fork_layers": (0, 1, 2, 3, 4), "averaging": "logit"},
}


def random_biases(dice: random.Random, config: ModelConfig, tokens: int) -> tuple[ForkBias, ...]:
    """Few or many; some force more forks than the budget has."""
    places = [(layer, position) for layer in config.fork_layers for position in range(tokens)]
    some = dice.sample(places, min(len(places), dice.choice([1, 5, 40])))
    select = dice.choice([["by_rule"], ["always"], ["never"], ["by_rule", "always", "never"]])
    return tuple(
        ForkBias(layer=layer, position=p, bias=dice.choice([0, -3.5, 6, -100, 100]), select=dice.choice(select))  # type: ignore[arg-type]
        for layer, p in some
    )


def params(**settings: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": LENGTH, "temperature": 0, "ignore_eos": True, **settings})  # type: ignore[arg-type]


def scores_of(forks: list[Fork], token: int) -> list[list[float]]:
    return [fork.score[0, fork.of_token(token)].exp().tolist() for fork in forks]


def check_causal(model: Thoughtbubbles, prompt: list[int], given: SamplingParams, completion: Completion) -> None:
    """Tokens, log-probabilities and scores, against one forward of the whole."""
    tokens = [*prompt, *completion.token_ids]
    logits, forks = model(torch.tensor([tokens]), ratio=given.fork_ratio, intervene=given.fork_bias, return_forks=True)
    log_p = logits[0].log_softmax(1)
    assert log_p[len(prompt) - 1 : -1, :257].argmax(1).tolist() == list(completion.token_ids)
    wanted = log_p[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    report = completion.events[0].prompt
    assert report is not None
    found = torch.tensor([*report.token_logprobs[1:], *(event.logprob for event in completion.events)])
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)
    counts = [*report.fork_counts, *(event.fork_count for event in completion.events)]
    assert counts == [(own := forks[-1].of_token(t)).stop - own.start for t in range(len(tokens))]
    for t, scores in enumerate([*report.fork_scores, *(event.fork_scores for event in completion.events)]):
        assert scores is not None
        for own, expected in zip(scores, scores_of(forks, t), strict=True):
            assert list(own) == pytest.approx(expected, abs=1e-5)


@pytest.mark.numeric
@pytest.mark.parametrize("executor", ["native", "portable"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_random_mixes(
    shape: str, executor: ExecutorKind, make_model: MakeModel, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    """Rules, ratios and interventions share batches with requests that have none."""
    model, dice = make_model(**SHAPES[shape]), random.Random(shape)
    longest = model.config.block_size - LENGTH
    engine = Engine(
        model, tokenizer, EngineConfig(max_batch_size=7, page_size=4, cache_bytes=1 << 22, executor=executor)
    )
    given: list[tuple[list[int], SamplingParams]] = []
    for i, prompt in enumerate(prompts[:14]):
        biases = random_biases(dice, model.config, len(prompt[:longest]) + LENGTH) if i % 3 else ()
        rule = dice.choice(["causal", "causal", "dynamic", "fixed"])
        reports = {"logprobs": 0, "prompt_logprobs": 0, "return_fork_counts": True, "return_fork_scores": True}
        settings = reports if rule == "causal" and biases else {}
        ratio = dice.choice([None, 1, dice.uniform(1, 4)])
        given.append((prompt[:longest], params(fork_bias=biases, fork_selection=rule, fork_ratio=ratio, **settings)))
    told: dict[str, list[TokenEvent]] = {}
    waiting = list(enumerate(given))
    while waiting or engine.has_work:
        if waiting and dice.random() < 0.5:
            i, each = waiting.pop()
            engine.add(str(i), *each)
        for event in engine.step():
            told.setdefault(event.request_id, []).append(event)
        engine.cache.check_integrity()
    for i, (prompt, each) in enumerate(given):
        completion = Completion.of(told[str(i)])
        if each.return_fork_scores:
            check_causal(model, prompt, each, completion)
        else:
            rule: Rule = each.fork_selection
            wanted = generate(
                model, prompt, LENGTH, rule=rule, ratio=each.fork_ratio, temperature=0, intervene=each.fork_bias
            )
            assert list(completion.token_ids) == wanted


@torch.no_grad()
def test_under_the_rules_that_revise_scores_are_those_of_the_present_length(
    model: Thoughtbubbles, engine: Engine
) -> None:
    prompt = list(range(20))
    biases = (ForkBias(layer=2, position=4, select="always"), ForkBias(layer=1, position=22, bias=5))
    [completion] = engine.generate(
        [prompt], params(max_tokens=4, fork_selection="dynamic", fork_bias=biases, return_fork_scores=True)
    )
    report = completion.events[0].prompt
    assert report is not None
    assert [event.fork_count for event in completion.events] == [None] * 4, "not requested"
    for length in range(20, 25):
        ids = torch.tensor([[*prompt, *completion.token_ids][:length]])
        _, forks = model(ids, rule="dynamic", return_forks=True, intervene=within(biases, length))
        found = report.fork_scores if length == 20 else [completion.events[length - 21].fork_scores]
        for token, scores in zip(range(length - len(found), length), found, strict=True):
            for own, expected in zip(scores or (), scores_of(forks, token), strict=True):
                assert list(own) == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_interventions_leave_nothing_behind_and_find_nothing(model: Thoughtbubbles, engine: Engine) -> None:
    """A prompt in the prefix cache is not used by a request with interventions, nor one with them by others."""
    prompt = list(range(40))
    biases = tuple(ForkBias(layer=layer, position=p, select="never") for layer in (1, 2, 4) for p in range(30))
    cached, found = [], []
    for some in (biases, (), biases, ()):
        [completion] = engine.generate([prompt], params(fork_bias=some, logprobs=5))
        ids = [*prompt, *completion.token_ids]
        log_p = model(torch.tensor([ids]), intervene=some)[0, 39:-1].log_softmax(1)
        tops = torch.tensor([event.top_logprobs for event in completion.events])
        wanted = log_p.gather(1, tops[:, :, 0].long())
        found.append(tops[:, :, 1])
        torch.testing.assert_close(found[-1], wanted, atol=TOLERANCE, rtol=0)
        usage = completion.events[-1].usage
        assert usage is not None
        cached.append(usage.cached_tokens)
    assert cached == [0, 0, 0, 39]
    assert (found[0] - found[1]).abs().max() > 10 * TOLERANCE, "a case without a difference shows nothing"


def test_a_model_without_forks_reports_no_scores(make_model: MakeModel, tokenizer: Tokenizer) -> None:
    engine = Engine(make_model(fork_layers=(), max_block_size=64), tokenizer, EngineConfig(cache_bytes=1 << 22))
    [completion] = engine.generate([[1, 2, 3]], params(return_fork_scores=True))
    assert completion.events[0].prompt is not None
    assert completion.events[0].prompt.fork_scores == ((), (), ())
    assert [event.fork_scores for event in completion.events] == [()] * LENGTH


BIAS = ForkBias(layer=1, position=3)


@pytest.mark.parametrize(
    ("biases", "message"),
    [
        ([replace(BIAS, layer=0)], r"fork_bias: layer must be a fork layer of the model \(1, 2, 4\), not 0"),
        ([BIAS, BIAS], "fork_bias: layer 1, position 3 is there twice"),
        ([BIAS, replace(BIAS, position=15)], r"fork_bias\[1\].position must be below 15, .* not 15"),
    ],
)
def test_what_the_model_lacks_is_refused(engine: Engine, biases: list[ForkBias], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refusal:
        engine.add("a", [1, 2, 3, 4, 5], params(fork_bias=tuple(biases)))
    assert refusal.value.param == "fork_bias"
    assert not engine.has_work


@pytest.mark.parametrize(
    ("biases", "message"),
    [
        ([replace(BIAS, bias=100.5)], r"fork_bias\[0\].bias must be -100 … 100, not 100.5"),
        ([replace(BIAS, row=0)], r"fork_bias\[0\].row must be None"),
        ([replace(BIAS, position=p) for p in range(257)], "at most 256 entries, not 257"),
    ],
)
def test_bounds(biases: list[ForkBias], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        params(fork_bias=tuple(biases))
    with pytest.raises(ValueError, match="bias must be a finite number"):
        replace(BIAS, bias=math.nan)
