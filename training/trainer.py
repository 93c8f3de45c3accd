"""A training run: learn, log, validate, save, stop, go on."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from model import ModelConfig, Thoughtbubbles, Tokenizer, save_checkpoint
from model.checkpoint import MAX_PADDING
from training.config import TrainConfig
from training.data.loader import WindowLoader
from training.data.token_file import TOKENIZER_FILE, Index, read_tokens
from training.measures import negative_log_likelihood, packed_windows
from training.run_log import RunLog
from training.schedule import learning_rate_factor
from training.state import Facts, load_state, read_facts, save_state
from training.step import TrainStep, autocast

STATE_FILE = "state.safetensors"
_FREE_ON_RESUME = {"validate_every", "save_every", "log_every"}


class Trainer:
    """Trains a model on a prepared folder and leaves in `out`:

    `best/`, the checkpoint of the lowest validation loss; `checkpoint/`, the latest; `state.safetensors`, what resuming
    reads; `log.jsonl`. Raises `ValueError` for data, sizes or a resumed run that do not fit together.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainConfig,
        *,
        data: Path,
        out: Path,
        device: torch.device,
        resume: bool,
    ) -> None:
        self._config = config
        self._out = out
        self._device = device
        self._index = Index.read(data)
        _require_vocabulary(model_config, self._index)
        self._tokenizer = Tokenizer.from_file(data / TOKENIZER_FILE)
        self._loader = WindowLoader(read_tokens(data, "train"), model_config.block_size, config.seed)
        self._val = packed_windows(read_tokens(data, "val"), model_config.block_size)
        torch.manual_seed(config.seed)
        self._model = Thoughtbubbles(model_config, dropout=config.dropout).to(device)
        self._learn = TrainStep(self._model, config, device)
        self._tokens_per_step = config.sequences_per_step * model_config.block_size
        self._best = math.inf
        self.step = 0
        out.mkdir(parents=True, exist_ok=True)
        if resume:
            self._resume()
        elif (out / STATE_FILE).exists():
            raise ValueError(f"out: {out} holds a run already; give --resume to go on with it, or another folder")

    def run(self, stopping: Callable[[], bool]) -> None:
        """Train until the last step, or until `stopping()`; either way what was learnt is saved."""
        config = self._config
        with RunLog(self._out / "log.jsonl", self.step, config.steps, self._tokens_per_step) as log:
            while self.step < config.steps and not stopping():
                log.learned(self._one_step())
                if self._due(config.log_every):
                    log.write_train(self.step, config.learning_rate * learning_rate_factor(self.step - 1, config))
                if self._due(config.validate_every):
                    log.write_validation(self.step, self._validate())
                if self._due(config.save_every):
                    self._save()
        if not self._due(config.save_every):
            self._save()

    def _one_step(self) -> torch.Tensor:
        first = self.step * self._config.accumulation
        numbers = range(first, first + self._config.accumulation)
        loss = self._learn(self.step, (self._loader.batch(number, self._config.batch_size) for number in numbers))
        self.step += 1
        return loss

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self._config.steps

    def _validate(self) -> float:
        """The packed loss over `val.bin` under the training rule; a new lowest is saved as `best/`."""
        with autocast(self._device, self._config.precision):
            nats = negative_log_likelihood(self._model, self._val, "blockwise", self._config.batch_size)
        loss = nats / sum(window.predicted for window in self._val)
        if loss < self._best:
            self._best = loss
            self._save_checkpoint("best")
        return loss

    def _save(self) -> None:
        self._save_checkpoint("checkpoint")
        save_state(self._out / STATE_FILE, self._model, self._learn.optimizers, self._facts())

    def _save_checkpoint(self, name: str) -> None:
        """Weights in the precision that the matrix products read them in; the state keeps them in float32."""
        dtype = getattr(torch, self._config.precision)
        save_checkpoint(self._out / name, self._model, self._tokenizer, self._provenance(), dtype=dtype)

    def _provenance(self) -> Facts:
        facts = self._facts()
        del facts["model"]  # a checkpoint says that itself
        made = {"date": datetime.now(UTC).date().isoformat(), "device": _device_name(self._device)}
        return {"tokens": self.step * self._tokens_per_step, **facts, **made, "torch": torch.__version__}

    def _facts(self) -> Facts:
        return {
            "step": self.step,
            "best_val_loss": self._best if math.isfinite(self._best) else None,
            "model": self._model.config.to_dict(),
            "training": self._config.to_dict(),
            "data": self._index.to_dict(),
        }

    def _resume(self) -> None:
        facts = read_facts(self._out / STATE_FILE)
        for part, now in self._facts().items():
            if isinstance(now, dict):
                _require_equal(part, facts[part], now)
        load_state(self._out / STATE_FILE, self._model, self._learn.optimizers)
        self.step = facts["step"]
        self._best = math.inf if facts["best_val_loss"] is None else facts["best_val_loss"]


def _require_vocabulary(config: ModelConfig, index: Index) -> None:
    if not 0 <= config.vocab_size - index.vocab_size <= MAX_PADDING:
        raise ValueError(f"vocab_size is {config.vocab_size} where the data's tokenizer has {index.vocab_size} ids")


def _require_equal(part: str, saved: dict[str, Any], now: dict[str, Any]) -> None:
    for name in sorted(now.keys() - _FREE_ON_RESUME):
        if saved.get(name) != now[name]:
            raise ValueError(f"resume: {name} ({part}) was {saved.get(name)!r} when saved and is {now[name]!r} now")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
