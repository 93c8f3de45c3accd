"""All layers of a segment in one kernel, against the kernels of each part and against whole engines."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.engine.kernels.conftest import DEVICE, ON_GPU, MakeEngine
from tests.engine.kernels.test_decode_ahead import KINDS, PROMPTS, assert_alike, params, plain, run
from thoughtbubbles.engine.cache.pages import Segment, SegmentPages
from thoughtbubbles.model import ModelConfig, Thoughtbubbles, Tokenizer

HELD, NEW = [70, 3, 0, 0, 30], [1, 2, 8, 0, 8]
"""Streams of each slot before, and new ones; 19 in all, which are more than one tile of rows."""
LIVE, MOST, PAGE = sum(NEW), 40, 4
PROGRAMS = [1, 3, 0] if ON_GPU else [1]
"""Programs that wait for each other, 0 for one on each multiprocessor; the interpreter runs one after another."""


@pytest.fixture(params=[("gelu", True, 48), ("gelu_tanh", False, 32)], ids=["biased", "plain"])
def model(request: pytest.FixtureRequest) -> Thoughtbubbles:
    """Three layers with heads of 24 channels, which are no power of two, or of 16."""
    activation, bias, width = request.param
    config = ModelConfig(vocab_size=9, block_size=64, max_block_size=128, n_layer=3, n_head=2, n_embd=width,
                         fork_layers=(0,), bias=bias, activation=activation)  # fmt: skip
    model = Thoughtbubbles(config).eval().to(DEVICE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def layers_of(
    model: Thoughtbubbles, dtype: torch.dtype, *, splits: int, programs: int | None, usual: int = 16
) -> tuple[Tensor, Tensor]:
    """What becomes of random streams and of the cache, by one kernel of so many programs, or by several (None)."""
    from thoughtbubbles.engine.cuda.kernels.persistent import LayerTable, Team, run_at_once
    from thoughtbubbles.engine.cuda.kernels.rows import Rows
    from thoughtbubbles.engine.cuda.layers import Scratch, num_sums, run_layers

    torch.manual_seed(1)
    model, config = model.to(dtype), model.config
    totals = [held + new for held, new in zip(HELD, NEW, strict=True)]
    pages = SegmentPages(config, Segment(1, range(3), forks_after=False), pages=128, page_size=PAGE,
                         like=torch.empty(0, device=DEVICE, dtype=dtype))  # fmt: skip
    pages.keys.copy_(torch.randn(pages.keys.shape))
    pages.values.copy_(torch.randn(pages.values.shape))
    table = torch.randperm(128)[: 20 * len(NEW)].view(len(NEW), 20)
    slots = [int(table[slot, at // PAGE]) * PAGE + at % PAGE
             for slot, total in enumerate(totals) for at in range(HELD[slot], total)]  # fmt: skip
    count = torch.tensor(NEW, dtype=torch.int32, device=DEVICE)
    angle = torch.rand(MOST, config.head_width // 2).to(DEVICE)
    rows = Rows(
        most=8, usual=usual, page_size=PAGE, table=table.int().to(DEVICE),
        lane=torch.where(count > 0, torch.arange(len(NEW), device=DEVICE), -1).int(),
        start=(count.cumsum(0) - count).int(), count=count,
        length=torch.tensor(totals, dtype=torch.int32, device=DEVICE), live=count.sum()[None].int(),
        slot=torch.tensor(slots + [0] * (MOST - LIVE), dtype=torch.int32, device=DEVICE),
        score=-torch.rand(MOST).to(DEVICE), cos=angle.cos(), sin=angle.sin(),
    )  # fmt: skip
    x = torch.randn(MOST, config.n_embd).to(DEVICE, dtype)
    scratch = Scratch.zeros(config, x, batch_size=len(NEW), rows=MOST, sums=num_sums(MOST, usual, config.n_embd),
                            splits=splits)  # fmt: skip
    if programs is None:
        run_layers(model, pages, x, rows, scratch)
    else:
        team = Team.of(config, DEVICE, batch_size=len(NEW))
        team = replace(team, programs=programs or team.programs)
        layers = LayerTable.of(list(model.blocks), pages.keys, pages.values)
        run_at_once(table=layers, team=team, x=x, rows=rows, queries=scratch.queries, attended=scratch.attended,
                    hidden=scratch.hidden, parts=scratch.parts)  # fmt: skip
    assert not scratch.parts.arrivals.any()
    return x, torch.stack((pages.keys, pages.values))


@pytest.mark.parametrize("programs", PROGRAMS)
@pytest.mark.parametrize(("splits", "usual"), [(4, 8), (1, 32)])
@torch.inference_mode()
def test_one_kernel_does_what_several_do(programs: int, splits: int, usual: int, model: Thoughtbubbles) -> None:
    """Also rows and slots of the cache that nobody has: they stay as they are."""
    ours = layers_of(model, torch.float32, splits=splits, programs=programs, usual=usual)
    theirs = layers_of(model, torch.float32, splits=splits, programs=None, usual=usual)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("programs", PROGRAMS)
@torch.inference_mode()
def test_halves(programs: int, model: Thoughtbubbles) -> None:
    """The interpreter knows no bfloat16."""
    ours = layers_of(model, torch.half, splits=1, programs=programs)
    theirs = layers_of(model, torch.half, splits=1, programs=None)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=0.03, rtol=0.02)


@pytest.mark.gpu
@torch.inference_mode()
def test_programs_that_wait_for_each_other_see_all_results(model: Thoughtbubbles) -> None:
    """Beside other work on the device. A program that did not wait long enough would make a run differ."""
    first, others = layers_of(model, torch.bfloat16, splits=4, programs=0), []
    stream, busy = torch.cuda.Stream(), torch.randn(4096, 4096, device=DEVICE)
    for _ in range(50):
        with torch.cuda.stream(stream):
            torch.mm(busy, busy)
        others.append(layers_of(model, torch.bfloat16, splits=4, programs=0))
    for other in others:
        assert all(torch.equal(*pair) for pair in zip(first, other, strict=True))


def test_engines_complete_alike(
    small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, in which engines otherwise do not take it."""
    monkeypatch.setattr("thoughtbubbles.engine.cuda.decode.few_enough", lambda *_: True)
    kinds = KINDS if ON_GPU else ("greedy", "restricted")
    requests = [(kind, PROMPTS[i % len(PROMPTS)], params(**KINDS[kind])) for i, kind in enumerate(kinds)]
    assert_alike(run(make_engine(small_model), requests), run(plain(small_model, tokenizer), requests))
