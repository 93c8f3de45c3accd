"""Scoring prompts takes bounded memory: few logits at once, and little of a prompt until its answer is written."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.conftest import MakeModel
from thoughtbubbles.engine import Engine, EngineConfig, PromptReport, SamplingParams, scoring
from thoughtbubbles.model import ForkBias, Rule, Streams, Thoughtbubbles, Tokenizer

AT_ONCE = 8
PROMPTS = [[(7 * i + place * place) % 256 for place in range(40)] for i in range(8)]
ASK = {"prompt_logprobs": 3, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture
def largest(model: Thoughtbubbles, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens that every set of logits was made for."""
    made: list[int] = []
    readout = model.readout

    def recorded(streams: Streams, *head: object) -> Tensor:
        logits = readout(streams, *head)
        made.append(logits.shape[0] * logits.shape[1])
        return logits

    monkeypatch.setattr(model, "readout", recorded)
    return made


@pytest.mark.numeric
def test_few_logits_stand_in_memory_together(
    engine: Engine, largest: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine.generate(PROMPTS, SamplingParams(max_tokens=3, **ASK))
    assert max(largest) == 39, "one chunk holds a whole prompt of this length"
    largest.clear()
    monkeypatch.setattr(scoring, "TOKENS_AT_ONCE", AT_ONCE)
    parts = engine.generate(PROMPTS, SamplingParams(max_tokens=3, **ASK))
    assert max(largest) == AT_ONCE == len(PROMPTS), "neither more of a prompt nor more than each one's last token"
    for one, other in zip(whole, parts, strict=True):
        told, same = one.events[0].prompt, other.events[0].prompt
        assert list(told.scores.own) == pytest.approx(list(same.scores.own), abs=1e-5)
        assert told.scores.ids == same.scores.ids


def test_the_rules_without_a_cache_score_one_prefix_at_a_time(engine: Engine, largest: list[int]) -> None:
    engine.generate(PROMPTS[:2], SamplingParams(max_tokens=0, fork_selection="dynamic", **ASK))
    assert largest == 2 * 39 * [1] + [2], "every prefix alone, then each prompt's last token together"


@pytest.mark.parametrize("top", [0, 3, 20])
def test_what_is_kept_of_a_prompt_is_small(engine: Engine, top: int) -> None:
    [completion] = engine.generate([PROMPTS[0]], SamplingParams(max_tokens=0, prompt_logprobs=top))
    scores = completion.events[0].prompt.scores
    kept = sum(len(column) * column.itemsize for column in (scores.own, scores.ids, scores.values))
    assert kept == 39 * (4 + 8 * top)


def test_a_prompt_of_one_token_has_nothing_to_score(engine: Engine) -> None:
    [completion] = engine.generate([[5]], SamplingParams(max_tokens=0, prompt_logprobs=2))
    report = completion.events[0].prompt
    assert (report.token_logprobs, report.top_logprobs) == ((None,), (None,))


@pytest.mark.parametrize("rule", ["causal", "dynamic"])
def test_rows_that_only_pad_the_embedding_are_never_told(
    make_model: MakeModel, tokenizer: Tokenizer, rule: Rule
) -> None:
    """A checkpoint may have more rows than its tokenizer has ids. They keep their probability alone."""
    model = make_model(vocab_size=264)
    with torch.no_grad():
        model.transformer.wte.weight[257:] *= 4  # among the likeliest nearly everywhere
    engine = Engine(model, tokenizer, EngineConfig(cache_bytes=1 << 22))
    asked = SamplingParams(max_tokens=6, logprobs=20, prompt_logprobs=20, fork_selection=rule, seed=0)
    [completion] = engine.generate([PROMPTS[0]], asked)
    told = [*completion.events[0].prompt.top_logprobs[1:], *(event.top_logprobs for event in completion.events)]
    assert {len(top) for top in told} == {20}
    assert max(token_id for top in told for token_id, _ in top) <= tokenizer.end_of_text
    with torch.inference_mode():
        raw = model(torch.tensor([PROMPTS[0]]), rule=rule)[0, -1].log_softmax(0)
    assert raw.argmax() > tokenizer.end_of_text
    assert [value for _, value in told[39]] == pytest.approx(raw[:257].topk(20).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("other", [{}, {"fork_selection": "dynamic"}, {"fork_bias": (ForkBias(layer=1, position=0),)}])
def test_a_report_has_what_was_requested_alone(engine: Engine, other: dict[str, Any]) -> None:
    for logprobs, counts, scores in itertools.product((None, 1), (False, True), (False, True)):
        params = SamplingParams(
            max_tokens=1, prompt_logprobs=logprobs, return_fork_counts=counts, return_fork_scores=scores, **other
        )
        [completion] = engine.generate([[1, 2, 3]], params)
        report = completion.events[0].prompt
        report = report or PromptReport()
        found = report.scores is not None, bool(report.fork_counts), bool(report.fork_scores)
        assert found == (logprobs is not None, counts, scores)
