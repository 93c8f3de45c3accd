"""Sums and log-sum-exps over each token's streams.

The streams of a token lie side by side (`token_index` never decreases), so a batch is a set of CSR segments: pointers
into the stream dimension, no scattered writes. torch-scatter reduces such segments when it is installed (the extra
`scatter`); plain torch does the same otherwise.

Letters: B batch, T tokens, S streams, D width (V where the values are logits).
In every function `token_index` is (B, S) int64, non-decreasing along S: 0…T-1, then T on the right for padding. What
padding streams hold is ignored. A token without streams (the right end of a shorter row) sums to 0, and its
log-sum-exp is -inf.
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
    """Name what reduces segments on `device`: torch-scatter if its build covers that kind of device, else torch."""
    if torch_scatter is None:
        return "torch"
    if torch.device(device).type == "cuda" and torch.ops.torch_scatter.cuda_version() == -1:  # built without nvcc
        return "torch"
    return "torch-scatter"


def segment_counts(token_index: Tensor, T: int) -> Tensor:
    """Count each token's streams: (B, S) -> (B, T) int64."""
    return _pointers(token_index, T).diff(dim=1)[:, :T]


def segment_sum(values: Tensor, token_index: Tensor, T: int) -> Tensor:
    """Sum `values` over each token's streams: (B, S, D) -> (B, T, D). SPEC "Output averaging", eq. 12."""
    return _reduce(values, token_index, T, "sum")[:, :T]


def segment_logsumexp(values: Tensor, token_index: Tensor, T: int) -> Tensor:
    """Log-sum-exp of `values` over each token's streams: (B, S, V) -> (B, T, V). SPEC "Output averaging", eq. 11.

    Where there is nothing to sum (no streams, or all of them -inf) the result is -inf and its gradient 0.
    """
    peak = _reduce(values.detach(), token_index, T, "max")
    peak = torch.where(peak.isfinite(), peak, 0.0)  # nothing to sum has no peak to subtract
    total = _reduce((values - peak.take_along_dim(token_index[:, :, None], dim=1)).exp(), token_index, T, "sum")
    tiny = torch.finfo(total.dtype).tiny  # log(0) is what we want, its gradient is not: 0 · inf
    return torch.where(total > 0, total.clamp_min(tiny).log() + peak, -torch.inf)[:, :T]


def _reduce(values: Tensor, token_index: Tensor, T: int, reduction: _Reduction) -> Tensor:
    """(B, S, D) -> (B, T + 1, D): each token's, and in place T the padding's. No streams: 0, or of "max" 0 or -inf."""
    # torch.compile cannot look into torch-scatter's operators and would break the graph there; plain torch it fuses.
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
    """(B, T + 2) int64: token t's streams are pointers[t] ≤ s < pointers[t + 1]; the last segment is the padding's."""
    bounds = torch.arange(T + 2, device=token_index.device).expand(token_index.shape[0], -1)
    return torch.searchsorted(token_index.contiguous(), bounds.contiguous())
