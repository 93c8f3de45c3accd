"""The device of a model: the executor that computes on it, and the thread's current CUDA device."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.config import EngineConfig, ExecutorKind, WeightKind
from thoughtbubbles.engine.executor import Executor
from thoughtbubbles.engine.native.executor import NativeExecutor
from thoughtbubbles.engine.native.loading import NativeUnavailableError
from thoughtbubbles.engine.portable.executor import PortableExecutor
from thoughtbubbles.engine.portable.forward import CachedForward, ForkTally
from thoughtbubbles.engine.revising.executor import RevisingExecutor
from thoughtbubbles.engine.revising.layers import PackedLayers, SegmentLayers
from thoughtbubbles.engine.revising.recompute import Recompute
from thoughtbubbles.engine.sampler import Sampler
from thoughtbubbles.engine.warmup import warm_up
from thoughtbubbles.model import Thoughtbubbles, Tokenizer

if TYPE_CHECKING:
    from thoughtbubbles.engine.cuda.executor import CudaExecutor


def make_executor(model: Thoughtbubbles, cache: ForkCache, tokenizer: Tokenizer, config: EngineConfig) -> Executor[Any]:
    """Return the executor for a model on its device, ready for its first request.

    Raises `ValueError` with the reason if `executor` is `native` or `weights` are `int8` and the native executor is not
    available. Nothing else chooses by the type of the device.
    """
    sampler = Sampler(tokenizer)
    paged: PortableExecutor | NativeExecutor | CudaExecutor
    layers: SegmentLayers = PackedLayers(lambda: paged.forward.packed)
    if model.transformer.wte.weight.device.type == "cuda":
        if config.weights == "int8":
            raise ValueError("weights 'int8' need the native executor, which computes on a CPU, not on a GPU")
        from thoughtbubbles.engine.cuda.buffered import BufferedLayers  # noqa: PLC0415 - needs Triton
        from thoughtbubbles.engine.cuda.executor import make_cuda_executor  # noqa: PLC0415
        from thoughtbubbles.engine.cuda.layers import has_kernels  # noqa: PLC0415

        paged = make_cuda_executor(model, cache, sampler, guesses=config.speculate)
        if has_kernels(model.config):
            layers = BufferedLayers(model, cache.page_size)
    else:
        paged = _make_cpu_executor(model, cache, sampler, config.executor, config.weights)
    limit = cache.total_bytes
    recompute = Recompute(model, layers, vocabulary=sampler.vocabulary, limit_bytes=limit)
    executor: Executor[Any] = RevisingExecutor(paged, recompute, sampler, max_prefill_tokens=config.max_prefill_tokens)
    warm_up(executor, cache, tokenizer)
    return executor


def _make_cpu_executor(
    model: Thoughtbubbles, cache: ForkCache, sampler: Sampler, kind: ExecutorKind, weights: WeightKind
) -> PortableExecutor | NativeExecutor:
    if kind != "portable":
        try:
            return NativeExecutor.make(model, cache, sampler, weights)
        except NativeUnavailableError as error:
            if weights == "int8":
                raise ValueError(f"weights 'int8' need the native executor, which is not available: {error}") from error
            if kind == "native":
                raise ValueError(f"executor 'native' is not available: {error}") from error
    return PortableExecutor(CachedForward(model, cache, ForkTally()), sampler)


def current_device(device: torch.device) -> AbstractContextManager[None]:
    """Return a context that makes a CUDA device the thread's current one, and does nothing for a CPU.

    Triton's launches, streams, events and graphs go to the current device, which for a new thread is the first. The
    context may be entered repeatedly, but not nested.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
