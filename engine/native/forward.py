"""The forward pass of new tokens over the fork-state cache in one call of the native library.

It computes what `engine.portable.forward` does, which is its reference.

Letters: R requests, T new tokens of all of them, S their streams, D model width, V vocabulary, G segments, L tokens
after which one is drawn.
"""

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cache.layout import Indices
from thoughtbubbles.engine.config import WeightKind
from thoughtbubbles.engine.lookup import GUESSING
from thoughtbubbles.engine.native import library as c
from thoughtbubbles.engine.native.loading import Native
from thoughtbubbles.engine.portable.forward import Chunk, ForkTally, lay_out
from thoughtbubbles.engine.portable.layers import PackedModel
from thoughtbubbles.model import ForkingBlock, Streams, Thoughtbubbles
from thoughtbubbles.model.rotary import rotary_frequencies
from thoughtbubbles.model.transformer import Block

_AVERAGINGS = ("residual", "logit", "rightmost")


@dataclass(frozen=True)
class Extended:
    """What came of chunks, their tokens laid end to end; all of it until the next step."""

    counts: Indices
    """(T,) streams of each token."""
    logits: Tensor
    """(L,V) of the token that follows each chunk and, before it, each token that is followed by a guess."""
    read_streams: Callable[[], tuple[Tensor, Tensor]]
    """x (S,D) after the last layer and the cumulative scores c (S,)."""

    @property
    def streams(self) -> Streams:
        """Of all tokens (B = 1)."""
        return lay_out(*self.read_streams(), self.counts)


class NativeForward:
    """Runs a model under the causal rule over a cache, on a CPU in float32. Only `read_weights` reads its weights."""

    max_prefill_tokens = 128
    """As `CachedForward.max_prefill_tokens`. More is computed no faster, and what decodes would wait longer."""
    guessing = GUESSING
    """As `Executor.guessing`."""

    def __init__(
        self,
        model: Thoughtbubbles,
        cache: ForkCache,
        tally: ForkTally,
        *,
        native: Native,
        weights: WeightKind = "exact",
    ) -> None:
        """`weights` are those of the layers; the head is always exact."""
        self.model, self.cache, self.tally, self.level = model, cache, tally, native.level
        self.weights: WeightKind = weights
        self._config, self._library = model.config, native.library
        self._segments = len(cache.segments)
        requests = len(cache.ledger.kappa)
        self._create()
        self._rows, self._counts, self._draws = np.zeros((3, requests), np.int32)
        self._tally = np.zeros((max(1, self._segments - 1), 2), np.int64)
        self._step = c.Step()
        self._point_to("rows", "counts", "draws", "tally")
        self._allocate(requests)

    @cached_property
    def packed(self) -> PackedModel:
        """As `CachedForward.packed`, for requests without pages, with exact weights; made for the first of them."""
        return PackedModel(self.model)

    def read_weights(self) -> None:
        """As `Executor.read_weights`."""
        free = self._free
        self._create()
        free()
        self.__dict__.pop("packed", None)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are multiplied with."""
        return self._library.weight_bytes(self._handle)

    def prepare(self) -> None:
        """As `CachedForward.prepare`: nothing is compiled when it is first met."""

    def clear_gathered(self) -> None:
        """As `CachedForward.clear_gathered`: nothing is gathered."""

    def extend(self, chunks: list[Chunk]) -> Extended:
        """As `CachedForward.extend`."""
        R, L, states = len(chunks), sum(chunk.num_draws for chunk in chunks), [chunk.state for chunk in chunks]
        rows, sizes = [state.row for state in states], [len(chunk.ids) for chunk in chunks]
        assert min(sizes) > 0, "a chunk has a token"
        ids = np.array([i for chunk in chunks for i in chunk.ids], np.int32)
        self._rows[:R], self._counts[:R] = rows, sizes
        if len(self._logits) < L:
            self._allocate(L)
        self._draws[:R] = [chunk.num_draws for chunk in chunks]
        at = self._rows[:R].astype(np.int64)
        before = self.cache.ledger.streams[at, -1]
        self.cache.reserve(states, self.cache.ledger.tokens[at] + sizes)
        ends = np.empty((self._segments, len(ids)), np.int32)
        step = self._step
        step.requests, step.tokens, step.ids, step.ends = R, len(ids), ids.ctypes.data, ends.ctypes.data
        step.threads = torch.get_num_threads()
        if os.getpid() != self._process:
            self._create()
        self._tally[:] = 0
        self._library.run(self._handle, step)
        counts = self._note(chunks, ids, ends, at, before)
        return Extended(counts, self._logits[:L], self._read_streams)

    def draw(self, draws: c.Draws) -> None:
        """Draw from logits of the last step, on as many threads."""
        draws.threads = torch.get_num_threads()
        self._library.draw(self._handle, draws)

    def _allocate(self, draws: int) -> None:
        """Allocate the logits of a step with so many draws."""
        self._logits = torch.empty(draws, self._config.vocab_size)
        self._step.logits = self._logits.data_ptr()

    def _point_to(self, *columns: str) -> None:
        for name in columns:
            setattr(self._step, name, getattr(self, f"_{name}").ctypes.data)

    def _note(
        self, chunks: list[Chunk], ids: NDArray[np.int32], ends: NDArray[np.int32], rows: Indices, before: Indices
    ) -> Indices:
        """Record tokens and streams in the cache; (T,) the streams of each token after the last fork layer."""
        for layer, (forks, deletions) in zip(self._config.fork_layers, self._tally.tolist(), strict=False):
            self.tally.forks[layer] += forks
            self.tally.deletions[layer] += deletions
        if len(ids) == len(chunks):
            return self.cache.append(rows, ids.tolist(), ends.T)
        counts, at = np.empty(len(ids), np.int64), 0
        for chunk, streams in zip(chunks, before.tolist(), strict=True):
            end = at + len(chunk.ids)
            self.cache.extend(chunk.state, chunk.ids, ends[:, at:end], guesses=chunk.guesses)
            counts[at:end] = np.diff(ends[-1, at:end], prepend=streams)
            at = end
        return counts

    def _read_streams(self) -> tuple[Tensor, Tensor]:
        S, D = self._step.streams, self._config.n_embd
        x = np.ctypeslib.as_array(self._step.x, (S, D))
        return torch.from_numpy(x.copy()), torch.from_numpy(np.ctypeslib.as_array(self._step.score, (S,)).copy())

    def _create(self) -> None:
        """Give the weights to the library. A forked process does so again: a fork copies no threads."""
        kept: list[object] = [self.cache]  # what the library has pointers to
        handle = self._library.create(self._model(self.model, kept), self.level)
        self._process, self._kept, self._handle = os.getpid(), kept, handle
        self._free = weakref.finalize(self, _destroy, self._library, handle, self._process)
        self._free.atexit = False  # a daemon thread may be in a step

    def _model(self, model: Thoughtbubbles, kept: list[object]) -> c.Model:
        """Return the description of a model for the library; `kept` gets what it points to."""
        config, cache, ledger = model.config, self.cache, self.cache.ledger
        pointer = partial(_pointer, kept)
        scored = bool(config.fork_layers)
        H = config.head_width
        frequencies = rotary_frequencies(H, torch.device("cpu"))
        layers = (c.Layer * config.n_layer)(*(_layer(block, pointer) for block in model.blocks))
        segments = (c.Segment * self._segments)(*(
            c.Segment(
                pages.segment.layers.start, pages.segment.layers.stop, pages.pages * pages.page_size, int(begin),
                pages.keys.data_ptr(), pages.scores.data_ptr(),
            )
            for pages, begin in zip(cache.segments, ledger.begin, strict=True)
        ))  # fmt: skip
        norm = model.transformer.ln_f
        return c.Model(
            vocab_size=config.vocab_size, n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd,
            block_size=config.block_size, copies=config.copies, segments=self._segments,
            averaging=_AVERAGINGS.index(config.averaging), norm_before_averaging=config.norm_before_averaging,
            activation=config.activation == "gelu_tanh", score_bias=scored and config.score_bias,
            value_attenuation=scored and config.value_attenuation,
            residual_attenuation=config.residual_attenuation, page_size=cache.page_size,
            half_cache=cache.segments[0].keys.dtype == torch.float16, eight=self.weights == "int8",
            layers=layers, embedding=pointer(model.transformer.wte.weight),
            norm_weight=pointer(norm.weight), norm_bias=pointer(norm.bias),
            frequencies=pointer(frequencies), segment=segments,
            ledger_kappa=ledger.kappa.ctypes.data, ledger_tokens=ledger.tokens.ctypes.data,
            ledger_streams=ledger.streams.ctypes.data, ledger_table=ledger.table.ctypes.data,
            table_stride=ledger.table.shape[1],
        )  # fmt: skip


def _layer(block: Block, pointer: Callable[[Tensor | None], int | None]) -> c.Layer:
    modules: list[Any] = [
        block.ln_1,
        block.attn.c_attn,
        block.attn.c_proj,
        block.ln_2,
        block.mlp.c_fc,
        block.mlp.c_proj,
    ]
    tensors = [tensor for module in modules for tensor in (module.weight, module.bias)]
    if isinstance(block, ForkingBlock):
        norm = block.forking_ln
        tensors += [norm.weight, norm.bias, block.forking_score.weight, block.fork_embedding]
    return c.Layer(*map(pointer, tensors))


def _pointer(kept: list[object], tensor: Tensor | None) -> int | None:
    """Return the address of a tensor, contiguous, which stays as long as `kept`, to which it is added."""
    if tensor is None:
        return None
    tensor = tensor.detach().contiguous()
    assert tensor.dtype == torch.float32, "the native step computes in float32"
    kept.append(tensor)
    return tensor.data_ptr()


def _destroy(library: c.Library, handle: int, process: int) -> None:
    """Free a model, but not in a forked process: it would wait for threads that only its parent has."""
    if os.getpid() == process:
        library.destroy(handle)
