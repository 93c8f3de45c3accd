"""Compile kernels side by side: one after the other they take a minute, which a server's first start would wait for."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
from triton import knobs


def launch_compiled(launch: Callable[[], None], device: torch.device) -> None:
    """Compile all kernels that `launch` launches on a device side by side, then call it.

    To find them it is called once more before, and launches no kernel of Triton's then: its other work computes from
    whatever is in memory.
    """
    if device.type == "cuda":
        compile_launched(launch, device)
    launch()


def compile_launched(launch: Callable[[], None], device: torch.device) -> None:
    """Compile what `launch` would launch on a CUDA device, on as many threads as there are processors.

    A kernel that cannot be compiled so is compiled by its first launch, which says what is wrong with it.
    """

    def compile_one(kernel: Any, specialization: str) -> None:  # noqa: ANN401 - Triton's
        with torch.cuda.device(device), suppress(Exception):
            kernel.preload(specialization)

    kernels = _launched(launch)
    with ThreadPoolExecutor() as threads:
        list(threads.map(compile_one, kernels.values(), kernels))


def _launched(launch: Callable[[], None]) -> dict[str, Any]:
    """Return the kernels that `launch` would launch and that are not compiled yet, by what they are compiled for."""
    kernels: dict[str, Any] = {}

    def note(*, fn: Any, compile: dict[str, Any], **_: object) -> bool:  # noqa: A002, ANN401 - Triton's names
        kernels[compile["specialization_data"]] = fn.jit_function
        return True  # neither compile nor launch it

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, note
    try:
        launch()
    finally:
        knobs.runtime.jit_cache_hook = before
    return kernels
