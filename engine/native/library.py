"""The C structs of `src/interface.h` and the functions that the library exports, as ctypes has them."""

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

ABI_VERSION = 4
LEVELS = ("amx", "avx512", "avx2", "sse2", "neon", "plain")
"""Instruction levels, best first."""
BROKEN = -1
"""Stands where no token can be drawn: a logit is NaN or infinite."""
UNDECIDED = -2
"""Stands where the library leaves the draw of a token to `engine.sampler`."""

LAYER_FIELDS = (
    "norm_1_weight", "norm_1_bias", "heads_weight", "heads_bias", "attended_weight", "attended_bias",
    "norm_2_weight", "norm_2_bias", "hidden_weight", "hidden_bias", "activated_weight", "activated_bias",
    "fork_norm_weight", "fork_norm_bias", "fork_weight", "fork_embedding",
)  # fmt: skip


class Layer(ctypes.Structure):
    """`TbLayer`."""

    _fields_ = [(name, c_void_p) for name in LAYER_FIELDS]


class Segment(ctypes.Structure):
    """`TbSegment`."""

    _fields_ = [
        ("first_layer", c_int32), ("last_layer", c_int32), ("slots", c_int32), ("table_begin", c_int32),
        ("stored", c_void_p), ("scores", c_void_p),
    ]  # fmt: skip


class Model(ctypes.Structure):
    """`TbModel`."""

    _fields_ = [
        *((name, c_int32) for name in (
            "vocab_size", "n_layer", "n_head", "n_embd", "block_size", "copies", "segments", "averaging",
            "norm_before_averaging", "activation", "score_bias", "value_attenuation", "residual_attenuation",
            "page_size", "half_cache", "eight",
        )),
        ("layers", POINTER(Layer)), ("embedding", c_void_p), ("norm_weight", c_void_p), ("norm_bias", c_void_p),
        ("frequencies", c_void_p), ("segment", POINTER(Segment)),
        ("ledger_kappa", c_void_p), ("ledger_tokens", c_void_p), ("ledger_streams", c_void_p),
        ("ledger_table", c_void_p), ("table_stride", c_int64),
    ]  # fmt: skip


class Step(ctypes.Structure):
    """`TbStep`."""

    _fields_ = [
        ("requests", c_int32), ("tokens", c_int32), ("threads", c_int32),
        ("rows", c_void_p), ("counts", c_void_p), ("draws", c_void_p), ("ids", c_void_p),
        ("ends", c_void_p), ("tally", c_void_p), ("logits", c_void_p),
        ("streams", c_int32), ("x", POINTER(c_float)), ("score", POINTER(c_float)),
    ]  # fmt: skip


class Sampling(ctypes.Structure):
    """`TbSampling`."""

    _fields_ = [
        ("seed", c_int64),
        *((name, c_float) for name in ("temperature", "top_p", "log_min_p", "repetition", "presence", "frequency")),
        *((name, c_int32) for name in ("top_k", "min_tokens", "logprobs", "prompt", "num_biased", "num_banned")),
        ("biased", c_void_p), ("bias", c_void_p), ("banned", c_void_p),
    ]  # fmt: skip


class Draws(ctypes.Structure):
    """`TbDraws`."""

    _fields_ = [
        ("rows", c_int32), ("threads", c_int32), ("vocabulary", c_int32),
        ("logits", c_void_p), ("sampling", POINTER(Sampling)), ("ids", c_void_p), ("stride", c_int64),
        ("lanes", c_void_p), ("position", c_void_p), ("forbidden", c_void_p),
        ("drawn", c_void_p), ("logprobs", c_void_p), ("likeliest", c_void_p),
    ]  # fmt: skip


class Library:
    """A loaded library. Raises `OSError` where the file is no library of this ABI version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        library = ctypes.CDLL(str(path))
        try:
            version = int(library.tb_abi_version())
            for name, result, arguments in _FUNCTIONS:
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
        except AttributeError as error:
            raise OSError(f"{path} lacks a function of the native step: {error}") from error
        if version != ABI_VERSION:
            raise OSError(f"{path} has ABI version {version}; this program needs {ABI_VERSION}")
        self._library: Any = library

    def levels(self) -> list[str]:
        """Return the instruction levels that this processor has, best first."""
        present, names = c_int32(), []
        for i in range(len(LEVELS)):
            name = self._library.tb_level(i, ctypes.byref(present))
            if name is None:
                break
            if present.value:
                names.append(name.decode())
        return names

    def create(self, model: Model, level: str) -> int:
        """Return a handle of a model at a level. Raises `MemoryError` where its weights do not fit."""
        handle = self._library.tb_create(ctypes.byref(model), level.encode())
        if not handle:
            raise MemoryError(f"the native step could not be made at level {level}")
        return int(handle)

    def destroy(self, handle: int) -> None:
        """Free a model."""
        self._library.tb_destroy(handle)

    def weight_bytes(self, handle: int) -> int:
        """Return the bytes of a model's packed weights."""
        return int(self._library.tb_bytes(handle))

    def run(self, handle: int, step: Step) -> None:
        """Compute a step. Raises `MemoryError` where its intermediate values do not fit."""
        if self._library.tb_run(handle, ctypes.byref(step)):
            raise MemoryError("the native step ran out of memory")

    def draw(self, handle: int, draws: Draws) -> None:
        """Draw tokens from logits. Raises `MemoryError` where its intermediate values do not fit."""
        if self._library.tb_draw(handle, ctypes.byref(draws)):
            raise MemoryError("the native draw ran out of memory")


_FUNCTIONS: list[tuple[str, Any, list[Any]]] = [
    ("tb_abi_version", c_int32, []),
    ("tb_level", c_char_p, [c_int32, POINTER(c_int32)]),
    ("tb_create", c_void_p, [POINTER(Model), c_char_p]),
    ("tb_destroy", None, [c_void_p]),
    ("tb_bytes", c_int64, [c_void_p]),
    ("tb_run", c_int32, [c_void_p, POINTER(Step)]),
    ("tb_draw", c_int32, [c_void_p, POINTER(Draws)]),
]
