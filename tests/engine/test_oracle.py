"""Whatever the batch, the engine gives the tokens and the log-probabilities of the naive whole-sequence forward."""

import random

import pytest
import torch
from torch import Tensor

from tests.engine.conftest import MakeModel
from thoughtbubbles.engine import Completion, Engine, EngineConfig, SamplingParams, TokenEvent
from thoughtbubbles.engine.config import ExecutorKind
from thoughtbubbles.model import Hook, Selection, Thoughtbubbles, Tokenizer
from thoughtbubbles.model.generate import generate

TOLERANCE = 1e-4
EDGE = 2e-6
"""An eighth of the grid by which candidate scores are compared, and more than the error of a score in float32."""
VOCABULARY = 257
SHAPES = {
    "three forks": {},
    "layer 0 forks": {"fork_layers": (0, 3)},
    "forks in a row, no bias, tanh": {"fork_layers": (1, 2, 3), "bias": False, "activation": "gelu_tanh"},
    "odd budget": {"block_size": 48, "max_block_size": 71},
    "mixture of softmaxes": {"averaging": "logit"},
    "rightmost": {"averaging": "rightmost"},
    "normalised before averaging": {"norm_before_averaging": True},
    "regular": {"fork_layers": (), "max_block_size": 64},
    "copy-3": {"fork_layers": (), "max_block_size": 64, "copies": 3, "averaging": "rightmost"},
    "padded vocabulary": {"vocab_size": 300},
}


def params(**settings: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 8, "temperature": 0, "ignore_eos": True, "logprobs": 1, **settings})  # type: ignore[arg-type]


def check(model: Thoughtbubbles, prompt: list[int], completion: Completion, ratio: float | None) -> None:
    """Greedy tokens and their log-probabilities, against one forward of the whole (causal: each logit is final).

    Equal tokens compete with scores that differ in their last bits, and these decide where one lies on an edge of the
    grid. So the forward may round all scores on an edge up, or all down.
    """
    told = torch.tensor([event.logprob for event in completion.events])
    differences = []
    for shift in (0.0, EDGE, -EDGE):
        tokens, log_p = _whole(model, prompt, completion, ratio, shift)
        assert tokens == list(completion.token_ids)
        differences.append(float((told - log_p).abs().max()))
    assert min(differences) <= TOLERANCE, differences


def _whole(
    model: Thoughtbubbles, prompt: list[int], completion: Completion, ratio: float | None, shift: float
) -> tuple[list[int], Tensor]:
    """Return the greedy tokens of one forward, all scores shifted, and the log-probability of the completion's."""
    tokens = torch.tensor([[*prompt, *completion.token_ids]])
    shifted = Hook(point="candidate_scores", call=lambda scores, _: scores + shift if shift else None)
    log_p = model(tokens, ratio=ratio, intervene=[shifted])[0, len(prompt) - 1 : -1].log_softmax(1)
    return log_p[:, :VOCABULARY].argmax(1).tolist(), log_p.gather(1, tokens[0, len(prompt) :, None])[:, 0]


@pytest.mark.numeric
@pytest.mark.sample(10)
@pytest.mark.parametrize("executor", ["native", "portable"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_random_prompts_ratios_and_batches(
    shape: str, executor: ExecutorKind, make_model: MakeModel, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    model = make_model(**SHAPES[shape])
    engine = Engine(
        model, tokenizer, EngineConfig(max_batch_size=7, page_size=4, cache_bytes=1 << 22, executor=executor)
    )
    dice = random.Random(shape)
    ratios = [dice.choice([None, 1, dice.uniform(1, model.config.max_ratio)]) for _ in prompts]
    told: dict[str, list[TokenEvent]] = {}
    waiting = list(zip(prompts, ratios, strict=True))
    while waiting or engine.has_work:
        if waiting and dice.random() < 0.5:
            prompt, ratio = waiting.pop()
            engine.add(str(len(waiting)), prompt, params(fork_ratio=ratio))
        for event in engine.step():
            told.setdefault(event.request_id, []).append(event)
        engine.cache.check_integrity()
    for i, (prompt, ratio) in enumerate(zip(prompts, ratios, strict=True)):
        check(model, prompt, Completion.of(told[str(i)]), ratio)
    assert engine.stats().cache_bytes == 0


@pytest.mark.numeric
@torch.no_grad()
def test_weights_that_16_bits_hold(make_model: MakeModel, tokenizer: Tokenizer, prompts: list[list[int]]) -> None:
    """Those of a checkpoint stored in bfloat16: what is multiplied with 16 bits gives what 32 give."""
    model = make_model().bfloat16().float()
    engine = Engine(model, tokenizer, EngineConfig(max_batch_size=8, page_size=4, cache_bytes=1 << 22))
    completions = engine.generate(prompts, params())
    for prompt, completion in zip(prompts, completions, strict=True):
        check(model, prompt, completion, None)


@pytest.mark.numeric
@pytest.mark.parametrize("rule", ["causal", "dynamic", "fixed"])
def test_tokens_are_the_naive_samplers(
    rule: str, model: Thoughtbubbles, engine: Engine, prompts: list[list[int]]
) -> None:
    completions = engine.generate(prompts[:8], params(fork_selection=rule, fork_ratio=1.7))
    for prompt, completion in zip(prompts[:8], completions, strict=True):
        assert generate(model, prompt, 8, rule=rule, ratio=1.7, temperature=0) == list(completion.token_ids)  # type: ignore[arg-type]


@pytest.mark.numeric
def test_rules_share_a_batch(model: Thoughtbubbles, engine: Engine, prompts: list[list[int]]) -> None:
    rules = ["causal", "dynamic", "fixed"] * 4
    for i, rule in enumerate(rules):
        engine.add(str(i), prompts[i], params(fork_selection=rule))
    ids: dict[str, list[int | None]] = {}
    while engine.has_work:
        for event in engine.step():
            ids.setdefault(event.request_id, []).append(event.token_id)
    for i, rule in enumerate(rules):
        assert generate(model, prompts[i], 8, rule=rule, temperature=0) == ids[str(i)]  # type: ignore[arg-type]


@pytest.mark.numeric
@torch.no_grad()
def test_preempted_requests_give_the_same_tokens(
    model: Thoughtbubbles, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    """A cache for little more than one request of full length: many are preempted, none may notice."""
    cache = Engine(model, tokenizer, EngineConfig(page_size=4)).cache
    pages = cache.pages_needed(Selection.of(model.config, "causal"), 64)
    least = sum(n * segment.page_bytes for n, segment in zip(pages, cache.segments, strict=True))
    tight = Engine(model, tokenizer, EngineConfig(max_batch_size=8, page_size=4, cache_bytes=int(1.5 * least)))
    completions = tight.generate(prompts, params(max_tokens=20))
    assert tight.stats().preemptions_total > 0
    for prompt, completion in zip(prompts, completions, strict=True):
        check(model, prompt, completion, None)
    tight.cache.check_integrity()
    assert tight.stats().cache_streams == 0


@pytest.mark.numeric
@torch.no_grad()
def test_a_prompts_scores_are_the_forwards(engine: Engine, model: Thoughtbubbles, prompts: list[list[int]]) -> None:
    completions = engine.generate(prompts, params(max_tokens=0, prompt_logprobs=2, return_fork_counts=True))
    for prompt, completion in zip(prompts, completions, strict=True):
        logits, forks = model(torch.tensor([prompt]), return_forks=True)
        log_p = logits[0].log_softmax(1)
        report = completion.events[0].prompt
        assert report is not None
        assert report.token_logprobs[0] is None
        assert report.fork_counts == tuple(forks[-1].token_index[0].bincount()[: len(prompt)].tolist())
        wanted = log_p[:-1].gather(1, torch.tensor(prompt[1:], dtype=torch.int64)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(report.token_logprobs[1:]), wanted, atol=TOLERANCE, rtol=0)
        for told, row in zip(report.top_logprobs[1:], log_p, strict=False):
            assert told is not None
            assert [i for i, _ in told] == row.topk(2).indices.tolist()


@pytest.mark.numeric
@pytest.mark.parametrize("rule", ["causal", "dynamic", "fixed"])
def test_a_scored_prompt_equals_what_was_generated(rule: str, engine: Engine) -> None:
    [made] = engine.generate([[7, 1, 2]], params(max_tokens=20, fork_selection=rule, fork_ratio=1.4))
    sequence = [7, 1, 2, *made.token_ids]
    [scored] = engine.generate([sequence], params(max_tokens=0, prompt_logprobs=0, fork_selection=rule, fork_ratio=1.4))
    report = scored.events[0].prompt
    assert report is not None
    for event, logprob in zip(made.events, report.token_logprobs[3:], strict=True):
        assert event.logprob == pytest.approx(logprob, abs=TOLERANCE)
