"""How a pair of kernels becomes an operator that autograd and the compiler know."""

import os
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Kernels run in Triton's interpreter, on a CPU, where the compiler cannot take them into its own graph."""

wrap_triton: Callable[[Any], Any] = (lambda kernel: kernel) if INTERPRETED else torch.library.wrap_triton


def operator(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Register a function of tensors that calls kernels as `thoughtbubbles::name`; `fake` gives its empty results."""

    def register(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - an operator is of its function's type
        kind: Any = torch.library.custom_op if INTERPRETED else torch.library.triton_op
        op = kind(f"thoughtbubbles::{name}", function, mutates_args=())
        op.register_fake(fake)
        return op

    return register


def programs(rows: int, at_once: int, most: int) -> int:
    """How many programs share so many rows, each taking `at_once` at a time."""
    return min((rows + at_once - 1) // at_once, most)


def warps(width: int, of_1024: int) -> int:
    """Warps for a row: so many for each 1,024 channels of it, and no fewer."""
    return min(of_1024 * max(1, int(triton.next_power_of_2(width)) // 1024), 32)


def or_other(absent: Tensor | None, other: Tensor) -> Tensor:
    """A kernel's place for a tensor is filled, also where it does not look."""
    return other if absent is None else absent
