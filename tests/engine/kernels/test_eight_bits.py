"""Engines with a cache in 8 bits: what they compute, what they are called, and what is refused."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from tests.engine.kernels.conftest import ON_GPU, MakeEngine, attentive, cuda_executor, on_kernels
from tests.engine.kernels.test_decode_ahead import params
from thoughtbubbles.engine import Completion, Engine, EngineConfig, SamplingParams
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cache.prefix_index import BLOCK
from thoughtbubbles.engine.engine import _require_float8
from thoughtbubbles.engine.sampler import Sampler
from thoughtbubbles.model import Thoughtbubbles, Tokenizer

TOKENS = 24 if ON_GPU else 5


def scores(engine: Engine, completion: Completion, prompt: list[int]) -> list[float]:
    """The log-probabilities of a completion's tokens, when it is all a prompt."""
    whole = [*prompt, *completion.token_ids]
    report = engine.generate([whole], SamplingParams(max_tokens=0, prompt_logprobs=0))[0].events[0].prompt
    assert report
    return [p for p in report.token_logprobs[len(prompt) :] if p is not None]


def test_decode_reads_of_an_eight_bit_cache_what_prefill_does(
    small_model: Thoughtbubbles, make_engine: MakeEngine
) -> None:
    """Also after a prefix: a completion scores what it was drawn with."""
    engine = on_kernels(make_engine(attentive(small_model), cache_dtype="float8"), sizes=(8, 64))
    start = [5, 9, 3, 3, 3, 7, 11, 40, 41, 2, 2, 90, 17, 17, 4, 8, 6]
    settings = params(temperature=0, logprobs=0, max_tokens=TOKENS)
    for prompt in (start, [*start, 30], [9, 9]):
        completion = engine.generate([prompt], settings)[0]
        usage = completion.events[-1].usage
        assert usage
        assert (usage.cached_tokens >= BLOCK) == (prompt == [*start, 30])
        drawn = [event.logprob for event in completion.events]
        assert drawn == pytest.approx(scores(engine, completion, prompt), abs=1e-4)
    engine.cache.check_integrity()


def test_eight_bits_take_half_the_pages(small_model: Thoughtbubbles, make_engine: MakeEngine) -> None:
    """In bfloat16 or float16 that is; two numbers and a score beside 16 bytes of keys and values count here."""
    model = deepcopy(small_model).half()
    half, eight = (make_engine(model, cache_dtype=dtype).cache for dtype in (None, "float8"))
    for pages, others in zip(eight.segments, half.segments, strict=True):
        beside = 8 * pages.segment.forks_after
        assert pages.page_bytes // 4 - beside - 4 == (others.page_bytes // 4 - beside) / 2
        assert pages.pages > others.pages


def test_the_name_says_what_has_eight_bits(small_model: Thoughtbubbles, make_engine: MakeEngine) -> None:
    names = [cuda_executor(make_engine(small_model, cache_dtype=dtype)).name for dtype in (None, "float8")]
    assert names == ["cuda", "cuda (float8 cache)"]


def test_models_that_kernels_do_not_decode_are_refused(small_model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    from thoughtbubbles.engine.cuda.executor import make_cuda_executor

    model = Thoughtbubbles(replace(small_model.config, averaging="logit"))
    like = torch.empty(0, dtype=torch.float8_e4m3fn)
    cache = ForkCache(model.config, max_tokens=32, total_bytes=1 << 20, page_size=4, like=like)
    with pytest.raises(ValueError, match="cache_dtype 'float8' needs kernels that decode"):
        make_cuda_executor(model, cache, Sampler(tokenizer))


def test_devices_without_eight_bit_floats_are_refused(
    small_model: Thoughtbubbles, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="cache_dtype 'float8' needs a CUDA device, not cpu: float16 takes half"):
        Engine(small_model, tokenizer, EngineConfig(cache_bytes=1 << 21, cache_dtype="float8"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ValueError, match=r"needs compute capability 8\.9, and cuda:1 has 8.0"):
        _require_float8(torch.device("cuda:1"))
