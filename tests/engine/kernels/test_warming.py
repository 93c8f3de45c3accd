"""An engine that has been warmed up has met every kernel that a prompt may need, and shows nothing of it."""

import pytest
import torch

from tests.engine.kernels.conftest import MakeEngine, lively, on_kernels
from thoughtbubbles.engine import Engine, SamplingParams
from thoughtbubbles.engine.warmup import warm_up
from thoughtbubbles.model import ModelConfig, Thoughtbubbles, Tokenizer

Variant = tuple[object, ...]
SETTINGS: dict[str, object] = {"max_model_len": 14, "max_prefill_tokens": 20, "max_batch_size": 2, "seed": 0}
SIZES = 2, 5, 20


def variant(kernel: object, arguments: dict[str, object]) -> Variant:
    """What Triton compiles a kernel anew for: constants, types, and of numbers and addresses what divides them."""
    settings = vars(kernel).get("kwargs", vars(kernel))
    never = settings.get("do_not_specialize") or ()

    def of(name: str, value: object) -> object:
        if name.isupper() or value is None or isinstance(value, float):
            return type(value) if isinstance(value, float) else value
        if isinstance(value, torch.Tensor):
            return value.dtype, value.data_ptr() % 16 == 0
        assert isinstance(value, int)
        return () if name in never else (value == 1, value % 16 == 0)

    return kernel.__name__, *((name, of(name, value)) for name, value in arguments.items())  # type: ignore[attr-defined]


@pytest.fixture
def cold() -> None:
    """Not here: engines are warmed up on a device."""


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> set[Variant]:
    """The variants of kernels that have been launched."""
    from thoughtbubbles.engine.cuda.kernels import (
        adjusting,
        forking,
        linear,
        logprobs,
        packed_attention,
        prefill,
        sampling,
        selection,
    )

    seen: set[Variant] = set()
    kernels = [linear._normalise, linear._gelu_linear, linear._residual_linear, linear._project_heads,
               packed_attention._packed_attention, prefill._embed, prefill._score, prefill._rank, prefill._fit,
               prefill._gather, forking._average, adjusting.adjust, selection.spread, selection.gather,
               selection.select, sampling.draw_part, sampling.draw_best, logprobs.rank_rows,
               logprobs.report_rows]  # fmt: skip
    for kernel in kernels:

        def launch(*args: object, _kernel: object = kernel, _run: object = kernel.run, **kwargs: object) -> object:
            named = {**dict(zip(_kernel.arg_names, args, strict=False)), **kwargs}  # type: ignore[attr-defined]
            options = {name: value for name, value in named.items() if name not in ("grid", "warmup")}
            seen.add(variant(_kernel, options))
            return _run(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(kernel, "run", launch)
    return seen


def warm(engine: Engine) -> None:
    warm_up(engine.executor, engine.cache, engine.tokenizer)


def test_no_prompt_meets_a_kernel_first(make_engine: MakeEngine, met: set[Variant]) -> None:
    """Alone and together, in halves, whose products are cut by the rows that are usual in a step."""
    config = ModelConfig(
        vocab_size=257, block_size=64, max_block_size=128, n_layer=3, n_head=1, n_embd=12, fork_layers=(1, 2)
    )
    engine = on_kernels(make_engine(lively(Thoughtbubbles(config)).half(), page_size=3, **SETTINGS), SIZES)
    warm(engine)
    known = set(met)
    met.clear()
    for ratio, lengths in ((1, [1]), (None, [2]), (4, [3]), (1, [7]), (1.5, [14]), (4, [12]), (4, [11, 9])):
        params = SamplingParams(max_tokens=0, fork_ratio=ratio, prompt_logprobs=2)
        engine.generate([[1 + i * n for i in range(n)] for n in lengths], params)
    assert met <= known
    assert met


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_triton_compiles_nothing_for_a_prompt(
    dtype: torch.dtype, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it says itself. No other test has this width, for what a process has compiled it does not compile again."""
    from triton import knobs

    compiled: list[object] = []
    monkeypatch.setattr(knobs.runtime, "jit_post_compile_hook", lambda **told: compiled.append(told["repr"]))
    config = ModelConfig(
        vocab_size=257, block_size=64, max_block_size=128, n_layer=5, n_head=4, n_embd=160, fork_layers=(1, 3)
    )
    model = lively(Thoughtbubbles(config)).to(dtype)
    engine = make_engine(model, max_batch_size=32, max_prefill_tokens=2048, cache_bytes=1 << 28)
    assert compiled
    compiled.clear()
    for ratio, requests, tokens in ((1, 1, 1), (None, 1, 2), (4, 1, 3), (None, 1, 9), (1.5, 1, 33), (4, 1, 61),
                                    (None, 2, 55), (1, 4, 61), (None, 8, 60), (4, 16, 61), (None, 31, 61)):  # fmt: skip
        params = SamplingParams(max_tokens=3, ignore_eos=True, fork_ratio=ratio, seed=1, prompt_logprobs=requests % 3)
        engine.generate([[1 + 7 * r + i % 5 for i in range(tokens)] for r in range(requests)], params)
    assert compiled == []


@pytest.mark.slow
def test_nothing_of_it_is_left(small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer) -> None:
    new, warmed = (on_kernels(make_engine(small_model, **SETTINGS), SIZES) for _ in range(2))
    warm(warmed)
    warmed.cache.check_integrity()
    assert warmed.stats() == new.stats()
    assert warmed.last_step is None
    assert [pages.free for pages in warmed.cache.segments] == [pages.pages for pages in warmed.cache.segments]
    prompts, params = [[0] * 10, list(range(10))], SamplingParams(max_tokens=3)
    told = [engine.generate(prompts, params) for engine in (new, warmed)]
    assert [c.token_ids for c in told[0]] == [c.token_ids for c in told[1]], "seeds are drawn as if nothing had been"
    assert [c.events[-1].usage.cached_tokens for c in told[1] if c.events[-1].usage] == [0, 0]
    assert new.stats() == warmed.stats()
