"""Sums and log-sum-exps over each token's streams.

The streams of a token are adjacent (`token_index` is non-decreasing), so a batch is a set of CSR segments: pointers
into the stream dimension, no scattered writes. torch-scatter reduces such segments if it is installed (the extra
`scatter`); otherwise plain torch does.

Letters: B batch, T tokens, S streams, D width (V for logits).
In every function `token_index` is (B, S) int64, non-decreasing along S: 0…T-1, then T on the right for padding.
Values in padding are ignored. The sum of a token without streams (the right end of a shorter row) is 0, its
log-sum-exp -inf.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

try:
    import torch_scatter
except (ImportError, OSError, RuntimeError):  # absent, or compiled against another torch or CUDA
    torch_scatter = None

Backend = Literal["torch-scatter", "torch"]
_Reduction = Literal["sum", "max"]


def backend(device: torch.device | str = "cpu") -> Backend:
    """Return what reduces segments on `device`: torch-scatter if its build supports that device type, else torch."""
    if torch_scatter is None:
        return "torch"
    if torch.device(device).type == "cuda" and torch.ops.torch_scatter.cuda_version() == -1:  # built without nvcc
        return "torch"
    return "torch-scatter"


def segment_counts(token_index: Tensor, T: int) -> Tensor:
    """Return the number of each token's streams: (B, S) -> (B, T) int64."""
    return _pointers(token_index, T).diff(dim=1)[:, :T]


def token_streams(token_index: Tensor, token: int) -> slice:
    """Return the streams of a token, empty if it has none, from one row's `token_index` (S,), non-decreasing."""
    ends = torch.searchsorted(token_index.contiguous(), torch.tensor([token, token + 1], device=token_index.device))
    return slice(*ends.tolist())


def segment_sum(values: Tensor, token_index: Tensor, T: int) -> Tensor:
    """Return the sum of `values` over each token's streams: (B, S, D) -> (B, T, D). SPEC "Output averaging", eq. 12."""
    return _reduce(values, token_index, T, "sum")[:, :T]


def segment_logsumexp(values: Tensor, token_index: Tensor, T: int) -> Tensor:
    """Return the log-sum-exp over each token's streams: (B, S, V) -> (B, T, V). SPEC "Output averaging", eq. 11.

    Without anything to sum (no streams, or all of them -inf) the result is -inf and its gradient 0.
    """
    peak = _reduce(values.detach(), token_index, T, "max")
    peak = torch.where(peak.isfinite(), peak, 0.0)  # without anything to sum there is no peak to subtract
    total = _reduce((values - peak.take_along_dim(token_index[:, :, None], dim=1)).exp(), token_index, T, "sum")
    tiny = torch.finfo(total.dtype).tiny  # log(0) is right, but its gradient would be 0 · inf
    return torch.where(total > 0, total.clamp_min(tiny).log() + peak, -torch.inf)[:, :T]


def _reduce(values: Tensor, token_index: Tensor, T: int, reduction: _Reduction) -> Tensor:
    """Reduce (B, S, D) -> (B, T + 1, D), padding at index T. Without streams a sum is 0, a maximum 0 or -inf."""
    # torch.compile would break the graph at torch-scatter's operators; plain torch it fuses.
    if torch.compiler.is_compiling() or backend(values.device) == "torch":
        return _reduce_plain(values, token_index, T, reduction)
    reduced: Tensor = torch_scatter.segment_csr(values, _pointers(token_index, T), reduce=reduction)
    return reduced


def _reduce_plain(values: Tensor, token_index: Tensor, T: int, reduction: _Reduction) -> Tensor:
    B, S, D = values.shape
    rows = token_index + (T + 1) * torch.arange(B, device=values.device)[:, None]  # (B, S) into B · (T + 1) flat tokens
    index = rows.reshape(B * S, 1).expand(-1, D)
    start, name = (0.0, "sum") if reduction == "sum" else (-torch.inf, "amax")
    reduced = values.new_full((B * (T + 1), D), start).scatter_reduce(0, index, values.reshape(B * S, D), name)
    return reduced.view(B, T + 1, D)


def _pointers(token_index: Tensor, T: int) -> Tensor:
    """Return (B, T + 2) int64: token t has streams pointers[t] ≤ s < pointers[t + 1]; the last segment is padding."""
    bounds = torch.arange(T + 2, device=token_index.device).expand(token_index.shape[0], -1)
    return torch.searchsorted(token_index.contiguous(), bounds.contiguous())
