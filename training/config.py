"""The settings of a training run, apart from those of the model."""

import math
import reprlib
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from thoughtbubbles.model import document_fields

OptimizerName = Literal["adamw", "muon"]
Schedule = Literal["wsd", "cosine"]
Parallelism = Literal["ddp", "fsdp"]
Precision = Literal["float32", "bfloat16"]

MAX_BATCH_SIZE = 1 << 20
"""Far above what any device holds: a larger value would fill the memory before it fails."""
_TYPES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}
"""What messages call the types of fields."""
_CHOICES = {"optimizer": OptimizerName, "schedule": Schedule, "precision": Precision, "parallelism": Parallelism}


@document_fields
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one training run. Raises `ValueError` naming the setting if a value is not allowed."""

    steps: int
    """Number of optimizer steps, decay included."""
    batch_size: int
    """Sequences of L tokens per forward pass, over all ranks."""
    accumulation: int = 1
    """Batches whose gradients are averaged for one step."""
    learning_rate: float = 2.5e-4
    """Peak learning rate."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises linearly to its peak."""
    schedule: Schedule = "wsd"
    """Learning rate after the warm-up: `wsd` stays at the peak, then falls linearly; `cosine` falls all the way."""
    decay_fraction: float = 0.2
    """Fraction of the steps, at the end, in which `wsd` falls."""
    final_fraction: float = 0.0
    """Final learning rate, as a fraction of the peak; the paper's mid-training has 0.1."""
    optimizer: OptimizerName = "adamw"
    """Optimizer of the blocks' matrices; with `muon`, AdamW trains the embedding and the vectors."""
    weight_decay: float = 0.1
    """Decoupled weight decay of parameters with two dimensions or more."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the mean square."""
    clip: float = 1.0
    """Maximum norm of the gradient; a larger gradient is scaled down to it."""
    fork_noise: float = 0.0
    """Scale of the Gumbel noise added to scores when selection compares them; falls linearly to zero over the run."""
    random_ratio: bool = False
    """Whether every batch draws one of nine ratios from 1 to the model's own, so that one model serves all of them."""
    dropout: float = 0.0
    """Dropout of the embeddings and of both residual branches."""
    seed: int = 0
    """Seed of the initial weights, the order of the data and the dropout."""
    precision: Precision = "float32"
    """Of matrix products, and on CUDA of the streams; weights and optimizer state are always float32."""
    recompute: bool = False
    """Activation checkpointing: recompute a block's activations in the backward pass instead of storing them."""
    parallelism: Parallelism = "ddp"
    """With several ranks: `ddp` replicates the model, `fsdp` (FSDP2) shards weights, gradients and moments."""
    compile: bool = False
    """Whether to compile the step with `torch.compile`."""
    validate_every: int = 500
    """Steps between validations; the last step always validates."""
    save_every: int = 500
    """Steps between writes of `checkpoint/`; the last step always writes it."""
    log_every: int = 20
    """Steps between lines of the log. Only writing a line waits for the device."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if wanted := _TYPES.get(field.type):
                self._require(_is_of(getattr(self, field.name), field.type), field.name, wanted)
        for name in ("steps", "batch_size", "accumulation", "validate_every", "save_every", "log_every"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        self._require(self.batch_size <= MAX_BATCH_SIZE, "batch_size", f"at most {MAX_BATCH_SIZE}")
        self._require(0 <= self.seed < 1 << 63, "seed", "from 0 to 2^63 - 1")
        for name in ("learning_rate", "clip"):
            self._require(0 < getattr(self, name) < math.inf, name, "above 0 and finite")
        for name in ("dropout", "beta1", "beta2", "final_fraction"):
            self._require(0 <= getattr(self, name) < 1, name, "from 0 up to, not including, 1")
        self._require(0 <= self.decay_fraction <= 1, "decay_fraction", "from 0 to 1")
        for name in ("weight_decay", "fork_noise"):
            self._require(0 <= getattr(self, name) < math.inf, name, "at least 0 and finite")
        longest = self.steps - (0 if self.schedule == "cosine" else self.decay_steps)
        wanted = f"from 0 to the {longest} steps before the decay, such as --warmup-steps {longest // 2}"
        self._require(0 <= self.warmup_steps <= longest, "warmup_steps", wanted)
        for name, kind in _CHOICES.items():
            self._require(getattr(self, name) in get_args(kind), name, f"one of {get_args(kind)}")

    @property
    def decay_steps(self) -> int:
        """Steps in which the learning rate falls: with `cosine`, all after the warm-up."""
        if self.schedule == "cosine":
            return self.steps - self.warmup_steps
        return round(self.decay_fraction * self.steps)

    @property
    def sequences_per_step(self) -> int:
        """Sequences per optimizer step."""
        return self.batch_size * self.accumulation

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready copy."""
        return asdict(self)

    def _require(self, ok: bool, name: str, wanted: str) -> None:
        if not ok:
            raise ValueError(f"{name} must be {wanted}, not {reprlib.repr(getattr(self, name))}")


def _is_of(value: object, kind: object) -> bool:
    """Return whether a value may be in a field of type `kind`: any number for a float; a bool is no number."""
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, int if kind is int else int | float)
