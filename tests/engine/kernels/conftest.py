"""The kernels on a CUDA device where there is one, and in Triton's interpreter where not (tests/conftest.py)."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from thoughtbubbles.engine import Engine, EngineConfig
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.lookup import Guessing
from thoughtbubbles.engine.portable.forward import CachedForward, Chunk, Extended
from thoughtbubbles.engine.prompt_report import Scored
from thoughtbubbles.engine.revising.executor import RevisingExecutor
from thoughtbubbles.engine.revising.recompute import Recompute
from thoughtbubbles.engine.sampler import Sampler
from thoughtbubbles.model import ModelConfig, Thoughtbubbles, Tokenizer

if TYPE_CHECKING:
    from thoughtbubbles.engine.cuda.executor import CudaExecutor
    from thoughtbubbles.engine.cuda.sampler import DeviceSampler

ON_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="the kernels are Triton's")

MakeEngine = Callable[..., Engine]
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


def rounded(x: Tensor) -> Tensor:
    """x as an 8-bit cache stores it; beyond its largest number that."""
    return x.clamp(-448, 448).to(torch.float8_e4m3fn)


def by_channel(values: Tensor, page: int) -> Tensor:
    """8-bit values (N,slots,H) of pages of so many slots in the order in which they are stored."""
    heads, slots, width = values.shape
    return values.view(heads, slots // page, page, width).transpose(2, 3).reshape(values.shape)


def by_slot(stored: Tensor, page: int) -> Tensor:
    """The opposite."""
    heads, slots, width = stored.shape
    return stored.view(heads, slots // page, width, page).transpose(2, 3).reshape(stored.shape)


@pytest.fixture(autouse=True)
def float8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter rounds to 8 bits as a device does: its own rounding is wrong where the mantissa overflows."""
    if ON_GPU:
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    convert = InterpreterBuilder.create_fp_to_fp

    def create(self: InterpreterBuilder, source: TensorHandle, to: tl.dtype, rounding: object) -> TensorHandle:
        if to.scalar != tl.float8e4nv:
            return convert(self, source, to, rounding)
        bits = rounded(torch.from_numpy(source.data.astype(np.float32))).view(torch.uint8)
        return TensorHandle(bits.numpy(), to.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_fp_to_fp", create)


class PortablePrefill(CachedForward):
    """Prefill in torch operators for an executor that decodes with kernels: the interpreter takes its time."""

    sampler: "DeviceSampler"
    guessing = Guessing(match=8, gradual=False, least=4, most_tokens=64)
    max_lone_prefill_tokens = CachedForward.max_prefill_tokens

    def forget(self) -> None:
        """Nothing flies: `launch` computes."""

    def launch(self, chunks: list[Chunk], prepare_draw: Callable[[], bool]) -> "Computed":
        from thoughtbubbles.engine.cuda.sampler import scored

        plain = prepare_draw()
        extended, sampler, spare = self.extend(chunks), self.sampler, self.sampler.spare_lane
        lanes = [lane for each in chunks for lane in each.lanes or [each.state.row if each.draws else spare]]
        lane, token = torch.tensor([lanes, lanes], dtype=torch.int32, device="cpu")
        sampler.draw(extended.logits, lane, token, plain=plain)
        tops = [chunk.logprobs if chunk.draws else None for chunk in chunks for _ in range(chunk.num_draws)]
        logprobs = scored(sampler.report, tops, sampler.vocabulary)
        return Computed(extended, (token.tolist(), logprobs))


@dataclass
class Computed:
    extended: Extended
    tokens: tuple[list[int], list[Scored | None]]

    def land(self) -> Extended:
        return self.extended

    def drawn(self) -> tuple[list[int], list[Scored | None]]:
        return self.tokens

    def scores(self) -> None:
        """`Batch.output` scores prompts."""


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines compile what a test needs, and no more: on a device all that prompts may need would take each a while."""
    monkeypatch.setattr("thoughtbubbles.engine.device.warm_up", lambda *_: None)


@pytest.fixture
def small_model() -> Thoughtbubbles:
    """As small as a model with two forks can be, for the interpreter takes its time."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=257, block_size=64, max_block_size=128, n_layer=3, n_head=1, n_embd=16, fork_layers=(1, 2)
    )
    return lively(Thoughtbubbles(config).eval())


@pytest.fixture
def make_engine(tokenizer: Tokenizer) -> MakeEngine:
    """Engines that decode with the kernels."""

    def make(model: Thoughtbubbles, **settings: object) -> Engine:
        from thoughtbubbles.engine.cuda.buffered import BufferedLayers
        from thoughtbubbles.engine.cuda.decode_batch import DeviceBatch
        from thoughtbubbles.engine.cuda.executor import CudaExecutor, make_device_sampler

        config = EngineConfig(**{"max_batch_size": 4, "page_size": 4, "cache_bytes": 1 << 21, **settings})  # type: ignore[arg-type]
        model = deepcopy(model).to(DEVICE)  # others go on with it where it was
        if ON_GPU:
            return Engine(model, tokenizer, config)
        with pytest.MonkeyPatch.context() as patch:  # as if this were a device
            patch.setattr("thoughtbubbles.engine.engine._require_float8", lambda _: None)
            engine = Engine(model, tokenizer, replace(config, executor="portable"))
        forward = PortablePrefill(model, engine.cache, engine.executor.tally)
        forward.sampler = make_device_sampler(model, engine.cache, Sampler(tokenizer), drafted=64)
        decode = DeviceBatch(model, engine.cache, forward.tally, forward.sampler)
        paged = CudaExecutor(forward, decode, engine.cache, forward.sampler, host=Sampler(tokenizer))  # type: ignore[arg-type]
        recompute = Recompute(
            model, BufferedLayers(model, config.page_size), vocabulary=257, limit_bytes=engine.cache.total_bytes
        )
        engine.executor = RevisingExecutor(  # type: ignore[attr-defined]
            paged, recompute, Sampler(tokenizer), max_prefill_tokens=engine.max_prefill_tokens
        )
        engine.scheduler.mixes = True
        engine.scheduler.guessing = paged.guessing
        return engine

    return make


def on_kernels(engine: Engine, sizes: Sequence[int]) -> Engine:
    """The engine, that prefills with kernels wherever it runs, in steps of so many tokens."""
    from thoughtbubbles.engine.cuda.forward import DeviceForward

    executor = cuda_executor(engine)
    executor.forward = DeviceForward(
        engine.model, engine.cache, engine.executor.tally, sampler=executor.sampler, sizes=sizes,
        guesses=engine.config.speculate,
    )  # fmt: skip
    engine.scheduler.guessing = executor.guessing
    return engine


def sampler_of(model: Thoughtbubbles, cache: ForkCache) -> "DeviceSampler | None":
    """A sampler for the lanes of a cache; none for a model whose logits the kernels do not compute."""
    from thoughtbubbles.engine.cuda.sampler import DeviceSampler

    if model.config.averaging == "logit":
        return None
    return DeviceSampler(cache.ledger.generation, batch_size=64, vocabulary=257, model_vocabulary=257, end_of_text=0,
                         device=DEVICE)  # fmt: skip


def cuda_executor(engine: Engine) -> "CudaExecutor":
    """The engine's executor of requests with pages."""
    assert isinstance(engine.executor, RevisingExecutor)
    paged: CudaExecutor = engine.executor.paged
    return paged


@torch.no_grad()
def attentive(model: Thoughtbubbles) -> Thoughtbubbles:
    """Keys and values near one, as trained models have them: what is rounded of them moves streams by 0.01."""
    for block in model.blocks:
        block.attn.c_attn.weight.mul_(20)
        block.attn.c_proj.weight.mul_(10)
    return model


def lively(model: Thoughtbubbles) -> Thoughtbubbles:
    """Scores that differ enough for forks to live and die."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "forking_score" in name or "fork_embedding" in name or "wte" in name:
                parameter.normal_(std=0.5)
    return model
