"""The engine's limits. The model's sizes are in `ModelConfig`."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, get_args

from thoughtbubbles.model import document_fields

ExecutorKind = Literal["auto", "native", "portable"]
CacheDtype = Literal["float32", "float16", "float8"]
WeightKind = Literal["exact", "int8"]
MAX_SPECULATE = 32
_KINDS = {
    "executor": get_args(ExecutorKind), "cache_dtype": (None, *get_args(CacheDtype)), "weights": get_args(WeightKind),
}  # fmt: skip
_COUNTS = (
    "max_batch_size", "max_waiting_streams", "max_model_len", "max_prefill_tokens", "cache_bytes", "page_size",
)  # fmt: skip
_OPTIONAL = {"max_model_len", "max_prefill_tokens"}
"""Counts that may be None."""


@document_fields
@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Limits of an engine. Raises `ValueError` naming the setting."""

    max_batch_size: int = 64
    """Most requests that run at once; the others wait."""
    max_waiting_streams: int = 1 << 18
    """The most streams, after the last fork layer, that the tokens of waiting requests may have. A request beyond is
    refused with `QueueFull`, unless the queue is empty."""
    max_client_share: float = 1.0
    """The share of `max_waiting_streams` that the waiting requests of one client may need when complete, prompt and
    completion. A request beyond is refused with `ClientQueueFull`, unless no other of its client waits. 1: no limit."""
    max_model_len: int | None = None
    """The context: most tokens of prompt and completion together (None: the model's block_size)."""
    max_prefill_tokens: int | None = None
    """Most prompt tokens that one step prefills; a longer prompt takes several, between which other requests decode.
    With `speculate` also the most guesses of a step. (None: 128 by the native library, 512 by torch's operators; on a
    device with captured steps up to 2048, and up to 8192 while no request decodes.)"""
    cache_bytes: int = 1 << 30
    """Memory of the fork-state cache's pages, and the most beside it for the states of requests without pages: under
    `dynamic` and `fixed`, with `fork_bias` or `return_fork_scores`."""
    prefix_caching: bool = True
    """Whether requests start from cached prefixes of other ones."""
    cache_dtype: CacheDtype | None = None
    """Type of the keys and values that the cache stores (None: that of the model). float16 on a CPU and float8, which
    is e4m3, on a CUDA device halve the cache's memory, and what attention reads."""
    page_size: int = 16
    """Streams of a page."""
    executor: ExecutorKind = "auto"
    """What computes on a CPU: the native library, torch's operators (`portable`), or native where it is available."""
    speculate: int = 0
    """The most tokens that a step guesses of each request, from what followed its last tokens earlier in prompt and
    output, and computes with the next one. Tokens stay the same. For requests with pages and without a grammar; on a
    CUDA device at least 4; 0: off."""
    weights: WeightKind = "exact"
    """Weights of the layers: the model's, or rounded to int8 with a scale for each output, which the native executor
    alone computes with."""
    seed: int | None = None
    """Seed of the seeds of requests that have none (None: random)."""

    @property
    def max_client_streams(self) -> int | None:
        """`max_client_share` in streams; None if there is no limit."""
        return None if self.max_client_share == 1 else int(self.max_client_share * self.max_waiting_streams)

    def __post_init__(self) -> None:
        self._check_types()
        if not 0 < self.max_client_share <= 1:
            raise ValueError(f"max_client_share must be above 0, at most 1, not {self.max_client_share}")
        if not 0 <= self.speculate <= MAX_SPECULATE:
            raise ValueError(f"speculate must be from 0 to {MAX_SPECULATE}, not {self.speculate}")
        for name, kinds in _KINDS.items():
            if getattr(self, name) not in kinds:
                known = ", ".join(kind for kind in kinds if kind is not None)
                raise ValueError(f"{name} must be one of {known}, not {getattr(self, name)!r}")
        if self.weights == "int8" and self.executor == "portable":
            raise ValueError("weights 'int8' need the native executor; executor is 'portable'")
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")

    def _check_types(self) -> None:
        """Raise `ValueError` naming the first number of another type."""
        if not isinstance(self.max_client_share, Real):
            raise ValueError(f"max_client_share must be a number, not {self.max_client_share!r}")
        for name in (*_COUNTS, "speculate"):
            value = getattr(self, name)
            if not (isinstance(value, Integral) or (value is None and name in _OPTIONAL)):
                raise ValueError(f"{name} must be a whole number, not {value!r}")
