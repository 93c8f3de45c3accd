"""How a run is trained: everything that `ModelConfig` does not say."""

import reprlib
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

OptimizerName = Literal["adamw", "muon"]
Schedule = Literal["wsd", "cosine"]
Parallelism = Literal["ddp", "fsdp"]
Precision = Literal["float32", "bfloat16"]

MAX_BATCH_SIZE = 1 << 20
"""Far above any that a device holds: what is more would fill the memory before it fails."""
_CHOICES = {"optimizer": OptimizerName, "schedule": Schedule, "precision": Precision, "parallelism": Parallelism}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Raises `ValueError` naming the setting for a value that cannot be used."""

    steps: int
    """Optimizer steps from the first to the end of the decay."""
    batch_size: int
    """Sequences of L tokens that go through the model at once, those of all ranks together."""
    accumulation: int = 1
    """Batches whose gradients are averaged for one step."""
    learning_rate: float = 2.5e-4
    """At its peak."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises linearly to its peak."""
    schedule: Schedule = "wsd"
    """What follows the warm-up: `wsd` stays at the peak and then falls linearly, `cosine` falls all the way."""
    decay_fraction: float = 0.2
    """The last part of the steps, in which `wsd` falls."""
    final_fraction: float = 0.0
    """What the learning rate falls to, as a part of its peak; 0.1 is the paper's in mid-training."""
    optimizer: OptimizerName = "adamw"
    """For the matrices of the blocks; `muon` leaves the embedding and the vectors to AdamW."""
    weight_decay: float = 0.1
    """Decoupled, on everything of two dimensions or more."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the mean square."""
    clip: float = 1.0
    """The gradient's norm is cut to this."""
    fork_noise: float = 0.0
    """Scale of the Gumbel noise on the scores as selection compares them, falling linearly to zero over the run."""
    random_ratio: bool = False
    """Whether every batch draws its ratio, of nine from 1 to the model's own, so that one model serves them all."""
    dropout: float = 0.0
    """On the embeddings and both residual branches, in training alone."""
    seed: int = 0
    """Decides the initial weights, the order of the data and the dropout."""
    precision: Precision = "float32"
    """Of the matrix products, on a CUDA device of the streams too; weights and optimizer are float32 always."""
    recompute: bool = False
    """Activation checkpointing: a block's activations are computed again in the backward pass, not kept."""
    parallelism: Parallelism = "ddp"
    """Of several ranks: `ddp` keeps everything on each, `fsdp` (FSDP2) shards weights, gradients and moments."""
    compile: bool = False
    """Whether to run the step through `torch.compile`."""
    validate_every: int = 500
    """Steps between two measurements of the validation loss; the last step always makes one."""
    save_every: int = 500
    """Steps between two writes of `checkpoint/`; the last step always makes one."""
    log_every: int = 20
    """Steps between two lines of the log. The device is waited for only then."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "validate_every", "save_every", "log_every"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        self._require(self.batch_size <= MAX_BATCH_SIZE, "batch_size", f"at most {MAX_BATCH_SIZE}")
        self._require(0 <= self.seed < 1 << 63, "seed", "from 0 to 2^63 - 1")
        for name in ("learning_rate", "clip"):
            self._require(getattr(self, name) > 0, name, "above 0")
        for name in ("dropout", "beta1", "beta2", "final_fraction"):
            self._require(0 <= getattr(self, name) < 1, name, "from 0 up to, not including, 1")
        self._require(0 <= self.decay_fraction <= 1, "decay_fraction", "from 0 to 1")
        for name in ("weight_decay", "fork_noise"):
            self._require(getattr(self, name) >= 0, name, "at least 0")
        before_decay = self.steps - (0 if self.schedule == "cosine" else self.decay_steps)
        self._require(0 <= self.warmup_steps <= before_decay, "warmup_steps",
                      f"from 0 to the {before_decay} steps before the decay")  # fmt: skip
        for name, kind in _CHOICES.items():
            self._require(getattr(self, name) in get_args(kind), name, f"one of {get_args(kind)}")

    @property
    def decay_steps(self) -> int:
        """Steps of the decay: with `cosine` all that follow the warm-up."""
        if self.schedule == "cosine":
            return self.steps - self.warmup_steps
        return round(self.decay_fraction * self.steps)

    @property
    def sequences_per_step(self) -> int:
        """Sequences that one optimizer step learns from."""
        return self.batch_size * self.accumulation

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return asdict(self)

    def _require(self, ok: bool, name: str, wanted: str) -> None:
        if not ok:
            raise ValueError(f"{name} must be {wanted}, not {reprlib.repr(getattr(self, name))}")
