"""Both backends against the definition, row by row and token by token, and against each other: values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thoughtbubbles.model import segments

Segments = Callable[[Tensor, Tensor, int], Tensor]
both = pytest.mark.parametrize("function", [segments.segment_sum, segments.segment_logsumexp])


@pytest.fixture(params=["torch", "torch-scatter"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(segments, "torch_scatter", None)
    elif segments.torch_scatter is None:
        pytest.skip("torch-scatter is not installed (make scatter)")
    assert segments.backend() == request.param
    return str(request.param)


def ragged(rows: list[list[int]]) -> tuple[Tensor, int]:
    """Streams per token, row by row -> token_index (B, S), padded with T on the right, and T."""
    T = max(len(row) for row in rows)
    streams = [[t for t, count in enumerate(row) for _ in range(count)] for row in rows]
    S = max(len(row) for row in streams)
    return torch.tensor([row + [T] * (S - len(row)) for row in streams]), T


ROWS = [[1, 3, 1, 2], [2, 1], [4, 1, 1, 5]]  # the second row is shorter: its tokens 2 and 3 have no streams


def expected(function: Segments, values: Tensor, token_index: Tensor, T: int) -> Tensor:
    reduce = torch.sum if function is segments.segment_sum else torch.logsumexp
    return torch.stack(
        [
            torch.stack([reduce(row[index == t], dim=0) for t in range(T)])
            for row, index in zip(values, token_index, strict=True)
        ]
    )


def value_and_gradient(function: Segments, values: Tensor, token_index: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """The gradient is that of a sum weighted differently everywhere, over what is finite."""
    leaf = values.clone().requires_grad_()
    result = function(leaf, token_index, T)
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    (result.masked_fill(result.isinf(), 0) * weights).sum().backward()
    assert leaf.grad is not None
    return result.detach(), leaf.grad


@pytest.mark.numeric
@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_definition(function: Segments, backend: str, dtype: torch.dtype) -> None:
    token_index, T = ragged(ROWS)
    values = torch.randn(*token_index.shape, 6, dtype=dtype, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        value_and_gradient(function, values, token_index, T),
        value_and_gradient(lambda *args: expected(function, *args), values, token_index, T),
    )


@both
@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=9), min_size=1, max_size=4),
    width=st.integers(1, 5),
    scale=st.sampled_from([1.0, 100.0]),
    seed=st.integers(0, 1000),
)
def test_backends_agree(function: Segments, rows: list[list[int]], width: int, scale: float, seed: int) -> None:
    if segments.torch_scatter is None:
        pytest.skip("torch-scatter is not installed (make scatter)")
    token_index, T = ragged(rows)
    values = scale * torch.randn(*token_index.shape, width, generator=torch.Generator().manual_seed(seed))
    compiled = value_and_gradient(function, values, token_index, T)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "torch_scatter", None)
        torch.testing.assert_close(compiled, value_and_gradient(function, values, token_index, T))


def test_counts() -> None:
    token_index, T = ragged(ROWS)
    assert segments.segment_counts(token_index, T).tolist() == [[1, 3, 1, 2], [2, 1, 0, 0], [4, 1, 1, 5]]


@pytest.mark.parametrize("padding", [0.0, 1e30, -torch.inf])
@both
def test_padding_is_ignored(function: Segments, backend: str, padding: float) -> None:
    token_index, T = ragged(ROWS)
    values = torch.randn(*token_index.shape, 2, generator=torch.Generator().manual_seed(1))
    padded = values.masked_fill((token_index == T)[:, :, None], padding)
    (value, _), (other, gradient) = (value_and_gradient(function, v, token_index, T) for v in (values, padded))
    torch.testing.assert_close(value, other)
    assert torch.all(gradient[token_index == T] == 0)


@pytest.mark.parametrize(("function", "empty"), [(segments.segment_sum, 0.0), (segments.segment_logsumexp, -torch.inf)])
def test_tokens_without_streams_send_no_gradient(function: Segments, empty: float, backend: str) -> None:
    token_index, T = ragged(ROWS)
    values = torch.zeros(*token_index.shape, 2, requires_grad=True)
    result = function(values, token_index, T)
    assert torch.all(result[1, 2:] == empty)
    result.nan_to_num(neginf=0).backward(torch.ones_like(result))
    assert values.grad is not None
    assert values.grad.isfinite().all()


def test_impossible_streams_have_logsumexp_minus_infinity_and_no_gradient(backend: str) -> None:
    """Where every stream says -inf the subtraction of their maximum, done naively, gives NaN."""
    token_index, T = ragged([[2, 1]])
    values = torch.tensor([[[-torch.inf], [-torch.inf], [1.0]]], requires_grad=True)
    result = segments.segment_logsumexp(values, token_index, T)
    assert result.flatten().tolist() == [-torch.inf, 1.0]
    result.sum().backward()
    assert values.grad is not None
    assert values.grad.flatten().tolist() == [0.0, 0.0, 1.0]


def test_large_values_do_not_overflow(backend: str) -> None:
    token_index, T = ragged([[2, 3]])
    values = torch.full((1, 5, 1), 1e4)
    expected_sums = 1e4 + torch.tensor([2.0, 3.0]).log()
    torch.testing.assert_close(segments.segment_logsumexp(values, token_index, T).flatten(), expected_sums)


def test_a_build_that_cannot_do_the_device_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch-scatter compiled without nvcc imports well, and fails only when CUDA tensors come."""
    monkeypatch.setattr(segments, "torch_scatter", object())
    monkeypatch.setattr(torch.ops, "torch_scatter", type("Operators", (), {"cuda_version": lambda: -1}))
    assert segments.backend("cpu") == "torch-scatter"
    assert segments.backend("cuda") == "torch"


def test_compiles_in_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch-scatter present too: it is not called while compiling (an object() would fail)."""
    monkeypatch.setattr(segments, "torch_scatter", object())
    token_index, T = ragged(ROWS)
    values = torch.randn(*token_index.shape, 3, generator=torch.Generator().manual_seed(2))
    compiled = torch.compile(segments.segment_logsumexp, fullgraph=True, backend="eager")
    result = compiled(values, token_index, T)
    monkeypatch.setattr(segments, "torch_scatter", None)
    torch.testing.assert_close(result, segments.segment_logsumexp(values, token_index, T))
