"""Prefill with kernels: the streams and the candidates of the naive whole-sequence forward, however it is cut."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np
import pytest
import torch

from tests.engine.kernels.conftest import (
    DEVICE,
    MakeEngine,
    attentive,
    cuda_executor,
    lively,
    on_kernels,
    rounded,
    sampler_of,
)
from thoughtbubbles.engine import SamplingParams
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cache.prefix_index import BLOCK
from thoughtbubbles.engine.portable.forward import Chunk, ForkTally
from thoughtbubbles.model import ModelConfig, Selection, Thoughtbubbles, attention

PROMPTS = [list(range(30, 50)), [7] * 13, [9, 4, 4, 4]]
CUTS = {"at once": [20], "in two": [7, 20], "in three": [1, 2, 20]}
SHAPES: dict[str, dict[str, object]] = {
    "as it ships": {},
    "forks apart and side by side": {"n_layer": 4, "fork_layers": (1, 2, 3)},
    "a ratio of 1": {"max_block_size": 64},
    "a ratio between": {"max_block_size": 90},
    "layer 0 forks, no bias, tanh": {"fork_layers": (0, 2), "bias": False, "activation": "gelu_tanh"},
    "two heads of odd width": {"n_head": 2, "n_embd": 24},
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("cut", CUTS)
def test_however_it_is_cut(cut: str, small_model: Thoughtbubbles) -> None:
    check(small_model, CUTS[cut])


@pytest.mark.parametrize("cut", CUTS)
def test_a_cache_of_eight_bits(cut: str, small_model: Thoughtbubbles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the naive forward with rounded keys and values, the step's own too."""
    scored, attenuated = attention.score_channel, attention.attenuate
    monkeypatch.setattr(attention, "score_channel", lambda q, k, c: scored(q, rounded(k).float(), c))
    monkeypatch.setattr(attention, "attenuate", lambda v, c: attenuated(rounded(v).float(), c))
    check(attentive(small_model), CUTS[cut], like=torch.empty(0, dtype=torch.float8_e4m3fn, device=DEVICE))


def test_inputs_shared_out(small_model: Thoughtbubbles, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are in bfloat16: what is left for later is added before anybody looks, also at the end of a segment."""
    from thoughtbubbles.engine.cuda.kernels import linear
    from thoughtbubbles.engine.cuda.kernels.tiles import Tiles

    monkeypatch.setattr(linear, "tiles_of", lambda x, outputs, _: Tiles(16, 32, 32, 4, 2, 1 + (outputs <= x.shape[1])))
    check(small_model, CUTS["at once"])


@pytest.mark.sample(1)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str) -> None:
    sizes = {"vocab_size": 257, "block_size": 64, "max_block_size": 128, "n_layer": 3, "n_head": 1, "n_embd": 16,
             "fork_layers": (1, 2)}  # fmt: skip
    check(lively(Thoughtbubbles(ModelConfig.from_dict({**sizes, **SHAPES[shape]})).eval()), CUTS["in two"])


@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_requests_of_another_ratio_than_the_models(ratio: float, small_model: Thoughtbubbles) -> None:
    """At a higher one a step has room for fewer tokens: here 40 streams, of which 20 tokens may need 80."""
    check(small_model, CUTS["at once"], [20], Selection.of(small_model.config, "causal", ratio))


def test_a_step_has_room_for_all_streams_that_its_tokens_may_have(small_model: Thoughtbubbles) -> None:
    """Of ratio 4, in a step for 8 tokens of the model's ratio, which is 2: 16 streams after the last fork."""
    from thoughtbubbles.engine.cuda.forward import DeviceForward

    model = small_model.to(DEVICE)
    cache = ForkCache(model.config, max_tokens=32, total_bytes=1 << 20, page_size=4,
                      like=model.transformer.wte.weight.detach())  # fmt: skip
    forward = DeviceForward(model, cache, ForkTally(), sampler=sampler_of(model, cache), sizes=[2, 8])
    chunks = [Chunk(list(range(n)), cache.open(selection), selection)
              for n in (1, 3, 9, 4) for selection in [Selection.of(model.config, "causal", 4.0)]]  # fmt: skip
    taken = []
    while chunks:
        share, chunks = forward._take(chunks)
        assert len(share.gained) == len(share.chunks)
        assert (share.gained.sum(0) <= forward._steps[-1].rows).all()
        taken.append([len(chunk.ids) for chunk in share.chunks])
    assert taken == [[1, 3], [4], [4], [1, 3], [1]]


STEPS: dict[str, tuple[list[int], int]] = {
    "of one size": ([40], 16),
    "of many": ([3, 5, 20, 40], 16),
    "too small for a prompt": ([7], 16),
    "for fewer requests": ([40], 2),
    "of a token": ([1], 1),
}
"""Tokens and requests that they take in."""


@pytest.mark.sample(1)
@pytest.mark.parametrize("steps", STEPS)
def test_however_large_the_steps_are(steps: str, small_model: Thoughtbubbles, monkeypatch: pytest.MonkeyPatch) -> None:
    from thoughtbubbles.engine.cuda import forward as device_forward

    sizes, places = STEPS[steps]
    monkeypatch.setattr(device_forward, "BATCH_SIZE", places)
    check(small_model, CUTS["in two"], sizes)


def test_steps_of_a_model_that_averages_logits_are_joined(small_model: Thoughtbubbles) -> None:
    """Their tokens are drawn on the host."""
    model = lively(Thoughtbubbles(replace(small_model.config, averaging="logit")).eval())
    check(model, CUTS["at once"], sizes=[7])


def test_as_many_tokens_are_taken_in_as_the_largest_step_computes(small_model: Thoughtbubbles) -> None:
    from thoughtbubbles.engine.cuda.forward import DeviceForward

    model = small_model.to(DEVICE)
    for tokens, sizes, most in ((64, None, 2048), (20, None, 1024), (64, (4, 9), 9)):
        cache = ForkCache(model.config, max_tokens=tokens, total_bytes=1 << 20, page_size=4, requests=32,
                          like=model.transformer.wte.weight.detach())  # fmt: skip
        chosen = {} if sizes is None else {"sizes": sizes}
        assert DeviceForward(model, cache, ForkTally(), sampler=None, **chosen).max_prefill_tokens == most


@pytest.mark.slow
def test_rows_that_do_not_live_never_matter(small_model: Thoughtbubbles) -> None:
    """Whether a step is full or not, and whatever an earlier step has left in unused rows."""
    filled, spare = (Outcome.by(small_model, size) for size in (sum(map(len, PROMPTS)), 64))
    left = Outcome.by(small_model, 64, before=[[3] * 30, [8, 9] * 15])
    for other in (spare, left):
        assert other.counts == filled.counts
        for name in ("x", "score", "logits"):
            torch.testing.assert_close(getattr(other, name), getattr(filled, name), atol=1e-6, rtol=1e-6)
    assert torch.equal(spare.x, left.x)


@dataclass(frozen=True)
class Outcome:
    """What a step makes of the prompts."""

    x: torch.Tensor
    score: torch.Tensor
    logits: torch.Tensor
    counts: list[int]

    @classmethod
    def by(cls, model: Thoughtbubbles, size: int, before: Sequence[list[int]] = ()) -> Self:
        """A step for so many tokens, after another for other prompts."""
        from thoughtbubbles.engine.cuda.forward import DeviceForward

        selection, model = Selection.of(model.config, "causal"), deepcopy(model).to(DEVICE)
        cache = ForkCache(model.config, max_tokens=32, total_bytes=1 << 20, page_size=4,
                          like=model.transformer.wte.weight.detach())  # fmt: skip
        forward = DeviceForward(model, cache, ForkTally(), sampler=sampler_of(model, cache), sizes=[size])
        for prompts in (before, PROMPTS):
            states = [cache.open(selection) for _ in prompts]
            chunks = [Chunk(ids, state, selection) for ids, state in zip(prompts, states, strict=True)]
            if chunks:
                with torch.inference_mode():
                    extended = forward.extend(chunks)
        return cls(extended.x.clone(), extended.score.clone(), extended.logits.clone(), extended.counts.tolist())


@pytest.mark.sample(1)
@pytest.mark.parametrize("sizes", [(40,), (4, 9)])
def test_prompts_are_scored_and_found_again(
    sizes: tuple[int, ...], small_model: Thoughtbubbles, make_engine: MakeEngine
) -> None:
    """As without kernels, also where several steps take a prompt in, and after a prefix."""
    engine, without = on_kernels(make_engine(small_model), sizes), make_engine(small_model)
    told = []
    for each in (engine, without):
        scored = each.generate(PROMPTS, SamplingParams(max_tokens=0, prompt_logprobs=1))
        longer = each.generate([[*PROMPTS[0], 5, 6], [1]], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
        told.append((scored, longer))
    (reports, longer), (expected, wanted) = told
    for ours, others in zip(reports, expected, strict=True):
        report, other = ours.events[0].prompt, others.events[0].prompt
        assert report
        assert other
        assert report.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-4)
    assert [c.token_ids for c in longer] == [c.token_ids for c in wanted]
    usage = longer[0].events[-1].usage
    assert usage
    assert usage.cached_tokens >= BLOCK
    engine.cache.check_integrity()


@pytest.mark.parametrize("sizes", [(40,), (20, 40)])
def test_a_prefill_in_two_parts(
    sizes: tuple[int, ...], small_model: Thoughtbubbles, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is launched before the first is landed, in a step of its own, or else in the same one."""
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    prompts, reported = [PROMPTS[1], PROMPTS[2], [5, 6]], []
    for engine in (on_kernels(make_engine(small_model), sizes), make_engine(small_model)):
        engine.scheduler.part_tokens = 4
        launched: list[list[int]] = []
        forward = cuda_executor(engine).forward
        monkeypatch.setattr(forward, "launch", lambda chunks, draw, launch=forward.launch, launched=launched: (
            launched.append([len(chunk.ids) for chunk in chunks]), launch(chunks, draw))[1])  # fmt: skip
        reported.append([(c.token_ids, c.events[-1].usage.fork_count) for c in engine.generate(prompts, params)
                     if c.events[-1].usage])  # fmt: skip
        assert launched == [[13], [4, 2]]
        engine.cache.check_integrity()
    assert reported[0] == reported[1]
    assert len(reported[0]) == len(prompts)


def test_what_was_interrupted_is_forgotten(
    small_model: Thoughtbubbles, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody lands it, and its requests were aborted: the next prefill has their row of the ledger, and its step."""
    engine, params = on_kernels(make_engine(small_model), [40]), SamplingParams(max_tokens=0, return_fork_counts=True)
    wanted = engine.generate(PROMPTS[:1], params)[0].events[0].prompt
    engine.cache.clear()

    def interrupt(_flight: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cuda_executor(engine), "land", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.generate([PROMPTS[1]], params)
    engine.abort_all()
    assert engine.generate(PROMPTS[:1], params)[0].events[0].prompt == wanted
    assert [state.ids for state in engine.cache._retained] == PROMPTS[:1]
    engine.cache.check_integrity()


def check(
    model: Thoughtbubbles, cut: list[int], sizes: Sequence[int] = (8, 20, 40), selection: Selection | None = None,
    like: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """Prompts of unlike lengths, so that the shorter one is whole before the longer one is."""
    from thoughtbubbles.engine.cuda.forward import DeviceForward

    selection = selection or Selection.of(model.config, "causal")
    wanted = [model.streams(torch.tensor([ids]), selection)[0] for ids in PROMPTS]
    last = [model.readout(streams)[0, -1].detach() for streams in wanted]
    model = model.to(DEVICE)
    like = model.transformer.wte.weight.detach() if like is None else like
    cache = ForkCache(model.config, max_tokens=32, total_bytes=1 << 20, page_size=4, like=like)
    forward = DeviceForward(model, cache, ForkTally(), sampler=sampler_of(model, cache), sizes=sizes)
    states = [cache.open(selection) for _ in PROMPTS]
    seen: list[list[torch.Tensor]] = [[] for _ in PROMPTS]
    for start, end in pairwise([0, *cut]):
        going = [i for i, ids in enumerate(PROMPTS) if len(ids) > start]
        with torch.inference_mode():
            extended = forward.extend([Chunk(PROMPTS[i][start:end], states[i], selection) for i in going])
        streams = extended.streams
        for i, own in zip(going, extended.logits.cpu(), strict=True):
            if end >= len(PROMPTS[i]):
                torch.testing.assert_close(own, last[i], atol=1e-4, rtol=1e-4)
        ends = np.cumsum([len(PROMPTS[i][start:end]) for i in going])
        counts = np.diff(extended.counts.cumsum()[ends - 1], prepend=0).tolist()
        assert int((streams.token_index < streams.tokens).sum()) == sum(counts)
        for i, x in zip(going, streams.x[0].clone().cpu().split(counts), strict=True):
            seen[i].append(x)
    for ids, state, xs, one in zip(PROMPTS, states, seen, wanted, strict=True):
        live = one.token_index[0] < len(ids)
        ends = state.ledger.ends[state.row, -1, : len(ids)]
        assert np.diff(ends, prepend=0).tolist() == one.token_index[0][live].bincount().tolist()
        torch.testing.assert_close(torch.cat(xs), one.x[0][live], atol=1e-4, rtol=1e-4)


def test_models_that_the_kernels_do_not_compute_are_known(small_model: Thoughtbubbles) -> None:
    from thoughtbubbles.engine.cuda.decode import decodes_alone
    from thoughtbubbles.engine.cuda.layers import has_kernels

    config = small_model.config
    assert has_kernels(config)
    assert decodes_alone(config)
    copies = {"fork_layers": (), "max_block_size": 64, "copies": 3, "averaging": "rightmost"}
    for change in (copies, {"residual_attenuation": False}, {"n_layer": 7, "fork_layers": (1, 2, 3, 4, 5, 6)}):
        assert not has_kernels(replace(config, **change))
    assert not decodes_alone(replace(config, averaging="logit"))
