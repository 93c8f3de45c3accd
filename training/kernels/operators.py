"""Register kernels as operators for autograd and the compiler."""

import os
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, on a CPU; the compiler cannot inline them then."""

wrap_triton: Callable[[Any], Any] = (lambda kernel: kernel) if INTERPRETED else torch.library.wrap_triton


def operator(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that registers a function as operator `thoughtbubbles::name`; `fake` allocates its results."""

    def register(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - an operator has its function's type
        kind: Any = torch.library.custom_op if INTERPRETED else torch.library.triton_op
        op = kind(f"thoughtbubbles::{name}", function, mutates_args=())
        op.register_fake(fake)
        return op

    return register


def programs(rows: int, at_once: int, most: int) -> int:
    """Return how many programs to launch for `rows` rows, `at_once` rows each at a time, but no more than `most`."""
    return min((rows + at_once - 1) // at_once, most)


def warps(width: int, of_1024: int) -> int:
    """Return the warps for a row of `width` channels: `of_1024` per 1,024 channels, at least that, at most 32."""
    return min(of_1024 * max(1, int(triton.next_power_of_2(width)) // 1024), 32)


def or_other(absent: Tensor | None, other: Tensor) -> Tensor:
    """Return `absent`, or `other` in place of None: a kernel needs a pointer even for an argument it does not read."""
    return other if absent is None else absent
