"""How a run is trained: everything that `ModelConfig` does not say."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

OptimizerName = Literal["adamw", "muon"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Raises `ValueError` naming the setting for a value that cannot be used."""

    steps: int
    """Optimizer steps from the first to the end of the decay."""
    batch_size: int
    """Sequences of L tokens that go through the model at once."""
    accumulation: int = 1
    """Batches whose gradients are averaged for one step."""
    learning_rate: float = 2.5e-4
    """At its peak."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises linearly to its peak."""
    decay_fraction: float = 0.2
    """The last part of the steps, in which it falls linearly to zero; between the two it is constant."""
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
    dropout: float = 0.0
    """On the embeddings and both residual branches, in training alone."""
    seed: int = 0
    """Decides the initial weights, the order of the data and the dropout."""
    precision: Precision = "float32"
    """Of the matrix products; weights and optimizer are float32 always."""
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
        for name in ("learning_rate", "clip"):
            self._require(getattr(self, name) > 0, name, "above 0")
        for name in ("dropout", "beta1", "beta2"):
            self._require(0 <= getattr(self, name) < 1, name, "from 0 up to, not including, 1")
        self._require(0 <= self.decay_fraction <= 1, "decay_fraction", "from 0 to 1")
        self._require(self.weight_decay >= 0, "weight_decay", "at least 0")
        self._require(0 <= self.warmup_steps <= self.steps - self.decay_steps, "warmup_steps",
                      f"from 0 to the {self.steps - self.decay_steps} steps before the decay")  # fmt: skip
        self._require(self.optimizer in get_args(OptimizerName), "optimizer", f"one of {get_args(OptimizerName)}")
        self._require(self.precision in get_args(Precision), "precision", f"one of {get_args(Precision)}")

    @property
    def decay_steps(self) -> int:
        """Steps of the decay."""
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
            raise ValueError(f"{name} must be {wanted}, not {getattr(self, name)!r}")
