"""Prompts are scored on the device as `engine.scoring` scores them, in bounded memory, beside whatever else runs."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from tests.engine.kernels.conftest import DEVICE, MakeEngine, lively, on_kernels
from tests.engine.kernels.test_decode_ahead import assert_alike, assert_ranked_alike, plain
from thoughtbubbles.engine import Completion, Engine, SamplingParams, TokenEvent
from thoughtbubbles.engine.prompt_report import Scores
from thoughtbubbles.engine.scoring import report
from thoughtbubbles.model import ModelConfig, Streams, Thoughtbubbles, Tokenizer

PROMPTS = [[5, 9, 3, 3, 3, 7, 11, 40, 41, 42, 43, 44], [8] * 11, [7], [(7 * i * i + 3) % 251 for i in range(13)]]


def model_of(vocabulary: int, width: int = 16, **settings: object) -> Thoughtbubbles:
    torch.manual_seed(0)
    sizes = {"vocab_size": vocabulary, "block_size": 64, "max_block_size": 128, "n_layer": 1, "n_head": 1,
             "n_embd": width, "fork_layers": (), **settings}  # fmt: skip
    return lively(Thoughtbubbles(ModelConfig.from_dict(sizes)).eval())


def device_scores(
    model: Thoughtbubbles, streams: Streams, targets: list[int], tops: list[int], vocabulary: int
) -> list[Scores]:
    """What the device reports of each token of `streams`, a chunk of its own."""
    from thoughtbubbles.engine.cuda.kernels.rows import Rows
    from thoughtbubbles.engine.cuda.scoring import PromptScorer, Report

    count = streams.token_index[0].bincount(minlength=streams.tokens).int()
    scorer = PromptScorer(deepcopy(model).to(DEVICE), vocabulary=vocabulary, tokens=streams.tokens)
    nothing = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    rows = Rows.zeros(nothing, nothing[None], page_size=4, rows=len(streams.x[0]), most=4, usual=4, half=1,
                      start=(count.cumsum(0) - count).int().to(DEVICE), count=count.to(DEVICE))  # fmt: skip
    rows = replace(rows, score=streams.score[0].to(DEVICE))
    ids, places = torch.tensor([targets, tops], dtype=torch.int32, device=DEVICE)
    with torch.inference_mode():
        words = scorer.report(streams.x[0].to(DEVICE), rows, ids, places)
    reported = Report(words.cpu(), [(1, top) for top in tops], None, vocabulary).read()
    return [one for one in reported if one is not None]


def check(
    model: Thoughtbubbles, counts: Sequence[int], vocabulary: int, tops: list[int], *, ties: bool = False
) -> None:
    """Random tokens with so many streams each. Where logits differ or are equal, `ties`, rounding decides no rank."""
    index = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    shape = (len(index), model.config.n_embd)
    streams = Streams(torch.randn(shape)[None], -torch.rand(len(index))[None], index[None], len(counts))
    targets = torch.randint(model.config.vocab_size, (len(counts),)).tolist()
    reported = device_scores(model, streams, targets, tops, vocabulary)
    with torch.inference_mode():
        logits = model.readout(streams)[0]
        for i, (one, top) in enumerate(zip(reported, tops, strict=True)):
            wanted = Scores()
            wanted.extend(report(logits[i : i + 1], targets[i : i + 1], top, vocabulary=vocabulary))
            assert list(one.own) == pytest.approx(list(wanted.own), abs=1e-4)
            assert_ranked_alike(one.top(0), wanted.top(0))
            assert one.ids == wanted.ids or not ties


@pytest.mark.parametrize("settings", [{}, {"averaging": "rightmost"}, {"norm_before_averaging": True}], ids=str)
def test_every_row_has_its_own_report(settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """In several tiles, the last not full, each row with as many of the likeliest as it asks for."""
    from thoughtbubbles.engine.cuda import scoring

    monkeypatch.setattr(scoring, "ROWS_AT_ONCE", 4)
    check(model_of(300, **settings), [1, 3, 2, 1, 1, 4, 1, 2, 1, 1], 290, [0, 1, 20, 3, 0, 5, 20, 1, 2, 7])


def test_of_equal_logits_the_lower_ids_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also across the blocks that programs look at; and no more than there are."""
    from thoughtbubbles.engine.cuda import scoring

    monkeypatch.setattr(scoring, "TOKENS_AT_ONCE", 16)
    model = model_of(60)
    with torch.no_grad():
        model.transformer.wte.weight[:] = model.transformer.wte.weight[:3].repeat(20, 1)
    check(model, [1, 2, 1], 50, [20, 7, 1], ties=True)
    check(model, [1, 2], 9, [20, 9], ties=True)


@pytest.mark.gpu
def test_a_vocabulary_of_the_usual_size() -> None:
    check(model_of(50_304, 64), [1 + i % 3 for i in range(1100)], 50_257, [i % 21 for i in range(1100)])


def generate(
    engine: Engine, requests: dict[str, tuple[list[int], SamplingParams]], steps: int = 0
) -> dict[str, Completion]:
    """Requests that come together; `abort` is aborted after some steps."""
    reported: dict[str, list[TokenEvent]] = {}
    for name, (prompt, params) in requests.items():
        engine.add(name, prompt, params)
    while engine.has_work:
        for event in engine.step():
            reported.setdefault(event.request_id, []).append(event)
        engine.abort(*(["abort"] if (steps := steps - 1) == 0 else []))
        engine.cache.check_integrity()
    reported.pop("abort", None)
    return {name: Completion.of(events) for name, events in reported.items()}


def asked(**settings: object) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "ignore_eos": True, "max_tokens": 2, **settings})  # type: ignore[arg-type]


@pytest.mark.sample(1)
@pytest.mark.parametrize("size", [5, 32])
def test_any_prompts_together(
    size: int,
    small_model: Thoughtbubbles,
    make_engine: MakeEngine,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts that several steps compute, of a token, with fork counts, after a cached prefix, beside aborted ones."""
    from thoughtbubbles.engine.portable import executor

    requests = {
        "first": (PROMPTS[0], asked(prompt_logprobs=1, logprobs=1, max_tokens=1)),
        "not": (PROMPTS[1], asked(seed=1)),
        "abort": (PROMPTS[1], asked(prompt_logprobs=4, max_tokens=9)),
        "a token": (PROMPTS[2], asked(prompt_logprobs=3)),
        "most": (PROMPTS[3], asked(prompt_logprobs=20, return_fork_counts=True, fork_ratio=1.5)),
        "nothing": (PROMPTS[3], asked(prompt_logprobs=0, max_tokens=0)),
        "counts": (PROMPTS[0], asked(return_fork_counts=True)),
    }
    again = {"again": (PROMPTS[1], asked(prompt_logprobs=2)), "longer": ([*PROMPTS[1], 3], asked(prompt_logprobs=2))}
    host = plain(small_model, tokenizer)
    wanted = [generate(host, each, steps=3) for each in (requests, again)]
    device = on_kernels(make_engine(small_model), [size])
    monkeypatch.setattr(executor, "score", None)  # the host's
    got = [generate(device, each, steps=3) for each in (requests, again)]
    for one, other in zip(got, wanted, strict=True):
        assert_alike(one, other)


@pytest.mark.slow
def test_preempted_prompts(small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer) -> None:
    """They are scored once, before they lose their pages."""
    requests = {str(i): (PROMPTS[3 * i], asked(prompt_logprobs=2, max_tokens=8)) for i in range(2)}
    engine = on_kernels(make_engine(small_model, cache_bytes=22_500, max_model_len=22), [8])
    assert_alike(generate(engine, requests), generate(plain(small_model, tokenizer), requests))
    assert engine.stats().preemptions_total > 0
