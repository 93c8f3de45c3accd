"""Run a training: step, log, validate, save, stop and resume."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from thoughtbubbles.model import ModelConfig, Thoughtbubbles, load_checkpoint, save_checkpoint
from thoughtbubbles.model.checkpoint.checks import MAX_PADDING, check_replaceable
from thoughtbubbles.model.checkpoint.read import empty_model
from thoughtbubbles.model.checkpoint.weights import save_tensors
from thoughtbubbles.model.memory import require_memory
from thoughtbubbles.training.config import TrainConfig
from thoughtbubbles.training.data.corpus import Corpus
from thoughtbubbles.training.data.loader import PADDING, inputs
from thoughtbubbles.training.data.verification import Verification
from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.flops import flops_per_block, peak_flops
from thoughtbubbles.training.measures import Window, negative_log_likelihood
from thoughtbubbles.training.run_log import RunLog
from thoughtbubbles.training.schedule import learning_rate_factor, ratio
from thoughtbubbles.training.state import Facts, RunState, has_state, read_facts
from thoughtbubbles.training.step import TrainStep, autocast
from thoughtbubbles.training.tracking import Tracker

STATE_FOLDER = "state"
BEST_FOLDER = "best"
LATEST_FOLDER = "checkpoint"
LOG_FILE = "log.jsonl"
NOT_FINITE_FILE = "not-finite.safetensors"
_FREE_ON_RESUME = {"validate_every", "save_every", "log_every", "parallelism", "recompute"}

_LATER_SETTINGS = {"loops": 1}
"""Of the model, which a state may be older than."""


class LossNotFiniteError(ValueError):
    """The loss of a batch is NaN or infinite: the run stopped, and the last saved state is from before that."""


class Trainer:
    """Trains a model on a prepared folder, or a mixture of several; every rank has a Trainer.

    It writes to `out`: `best/`, the checkpoint of the lowest validation loss; `checkpoint/`, the latest; `state/`, for
    resuming; `log.jsonl`. `start` is a checkpoint whose weights the run starts from. The folders of a mixture are
    relative to `root` (None: to its file). Raises `ValueError` if data, sizes or a resumed run do not fit together.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainConfig,
        *,
        data: Path,
        out: Path,
        ranks: Ranks,
        resume: bool,
        start: Path | None = None,
        root: Path | None = None,
    ) -> None:
        self._model_config = model_config
        self._config = config
        self._out = out
        self._ranks = ranks
        self._rank_batch_size = ranks.share(config.batch_size)
        self._corpus = Corpus.open(data, model_config.block_size, config.seed, root)
        self._verification = Verification(self._corpus.unverified if ranks.first_of_node else [])
        _require_vocabulary(model_config, self._corpus.vocab_size)
        parameters = sum(weights.numel() for weights in empty_model(model_config).parameters())
        require_memory(4 * parameters, f"a model of {parameters:,} parameters")
        torch.manual_seed(config.seed)
        self._model = Thoughtbubbles(model_config, dropout=config.dropout)
        if start is not None:
            _start_from(start, self._model)
        self._start = None if start is None else start.resolve().name
        self._model.to(ranks.device)
        self._train_step = TrainStep(self._model, config, ranks, padded=self._corpus.padded)
        self._state = RunState(out / STATE_FOLDER, self._model, self._train_step.optimizers, ranks)
        self._best = math.inf
        self.step = 0
        out.mkdir(parents=True, exist_ok=True)
        for name in (BEST_FOLDER, LATEST_FOLDER):
            check_replaceable((out / name).resolve())
        if resume:
            self._resume()
        elif ranks.any(has_state(out / STATE_FOLDER)):
            raise ValueError(f"out: {out} holds a run already; give --resume to go on with it, or another folder")

    def run(self, stopping: Callable[[], bool], trackers: Sequence[Tracker] = ()) -> None:
        """Train until the last step, or until `stopping()` is true on any rank, then save.

        Raises `LossNotFiniteError` for the first batch whose loss is NaN or infinite, without saving its step, and
        `ValueError` naming a data file that differs from its index.
        """
        with self._log(trackers) as log, self._verification:
            while self.step < self._config.steps and not self._ranks.any(stopping() or self._verification.failed):
                log.add_step(self._one_step(), self._flops())
                if self.step == self._config.steps:
                    self._verification.wait()
                    self._require_data()
                self._report(log)
            self._require_data()
            if not self._due(self._config.save_every):
                self._require_finite(log)
                self._save()
        self._state.wait()

    def _log(self, trackers: Sequence[Tracker]) -> RunLog:
        peak = peak_flops(self._ranks.device) if self._config.precision == "bfloat16" else None
        return RunLog(
            self._out / LOG_FILE, first_step=self.step, steps=self._config.steps,
            tokens_per_step=self._config.sequences_per_step * self._model_config.block_size,
            peak=None if peak is None else peak * self._ranks.world_size, ranks=self._ranks, trackers=trackers,
        )  # fmt: skip

    def _report(self, log: RunLog) -> None:
        """Log, validate and save if due after this step; raise instead if a loss is NaN or infinite."""
        config = self._config
        if any(map(self._due, (config.log_every, config.validate_every, config.save_every))):
            self._require_finite(log)
        if self._due(config.log_every):
            log.write_train(self.step, config.learning_rate * learning_rate_factor(self.step - 1, config))
        with log.untimed():
            if self._due(config.validate_every):
                log.write_validation(self.step, self._validate())
            if self._due(config.save_every):
                self._save()

    def _one_step(self) -> Tensor:
        ranks = self._ranks
        batches = (
            self._corpus.loader.batch(number * ranks.world_size + ranks.rank, self._rank_batch_size)
            for number in self._numbers(self.step)
        )
        losses = self._train_step(self.step, batches)
        self.step += 1
        return losses

    def _numbers(self, step: int) -> range:
        """Return the numbers of the batches, each over all ranks, of `step`."""
        return range(step * self._config.accumulation, (step + 1) * self._config.accumulation)

    def _flops(self) -> float:
        """Return the operations of the last step, on all ranks."""
        ratios = (ratio(number, self._model_config, self._config) for number in self._numbers(self.step - 1))
        return sum(self._config.batch_size * flops_per_block(self._model_config, r) for r in ratios)

    def _require_data(self) -> None:
        """Raise on all ranks if the verification of large files has failed so far."""
        if self._ranks.any(self._verification.failed):
            self._state.wait()
            raise self._verification.failure or ValueError(
                "data: another process found a file that is not what its index says"
            )

    def _require_finite(self, log: RunLog) -> None:
        found = log.first_not_finite()
        if found is None:
            return
        back, index = found
        step = self.step - back
        number = self._numbers(step)[index]
        path = self._out / NOT_FINITE_FILE
        if self._ranks.first:
            self._write_batch(number, path)
        self._state.wait()
        raise LossNotFiniteError(
            f"the loss of step {step + 1} is not finite: batch {number}, with token ids in {path} and"
            f" text in {path.with_suffix('.txt').name}"
        )

    def _write_batch(self, number: int, path: Path) -> None:
        """Write a batch of all ranks to `path` as token ids, and beside it as text, a line per window."""
        windows = self._corpus.loader.batch(number, self._config.batch_size)
        save_tensors({"windows": windows}, path)
        decode = self._corpus.tokenizer.decode
        lines = (json.dumps(decode(inputs(w[w != PADDING]).tolist()), ensure_ascii=False) + "\n" for w in windows)
        path.with_suffix(".txt").write_text("".join(lines), encoding="utf-8")

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self._config.steps

    def _validate(self) -> dict[str, float]:
        """Return the loss on each set's held-out text by name, and `val_loss`, their weighted mean.

        A new lowest `val_loss` is saved as `best/`.
        """
        corpus = self._corpus
        losses = {name: self._held_out_loss(windows) for name, windows in corpus.validation.items()}
        loss = sum(corpus.weights[name] * losses[name] for name in losses)
        if loss < self._best:
            self._best = loss
            self._save_checkpoint(BEST_FOLDER)
        return {"val_loss": loss} | ({f"val_loss/{n}": x for n, x in losses.items()} if len(losses) > 1 else {})

    def _held_out_loss(self, windows: Sequence[Window]) -> float:
        """Return nats per token under the training rule, over all ranks. Not compiled, because window lengths vary."""
        with autocast(self._ranks.device, self._config.precision), torch.compiler.set_stance("force_eager"):
            own = negative_log_likelihood(self._model, self._own(windows), "blockwise", self._rank_batch_size)
        nats = float(self._ranks.total(torch.tensor(own, dtype=torch.float64, device=self._ranks.device)))
        return nats / sum(int(window.counted.sum()) for window in windows)

    def _own(self, windows: Sequence[Window]) -> list[Window]:
        """Return this rank's windows: as many as on every other rank, because sharded ranks run in lockstep."""
        own = windows[self._ranks.rank :: self._ranks.world_size]
        missing = -(-len(windows) // self._ranks.world_size) - len(own)
        return [*own, *[replace(windows[0], predicted=0)] * missing]

    def _save(self) -> None:
        self._save_checkpoint(LATEST_FOLDER)
        self._state.save(self._facts())

    def _save_checkpoint(self, name: str) -> None:
        """Write a checkpoint with weights in the matrix products' precision; the state keeps them in float32."""
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self._model, options=whole)
        if not self._ranks.first:
            return
        model = empty_model(self._model_config)
        model.load_state_dict(weights, assign=True)
        dtype = getattr(torch, self._config.precision)
        save_checkpoint(self._out / name, model, self._corpus.tokenizer, self._provenance(), dtype=dtype)

    def _provenance(self) -> Facts:
        facts = self._facts()
        del facts["model"]  # stored in the checkpoint's config.json itself
        tokens = self.step * self._config.sequences_per_step * self._model_config.block_size
        made = {"date": datetime.now(UTC).date().isoformat(), "device": _device_name(self._ranks.device)}
        return {"tokens": tokens, **facts, **made, "ranks": self._ranks.world_size, "torch": torch.__version__}

    def _facts(self) -> Facts:
        return {
            "step": self.step,
            "best_val_loss": self._best if math.isfinite(self._best) else None,
            "start": self._start,
            "model": self._model_config.to_dict(),
            "training": self._config.to_dict(),
            "data": self._corpus.facts,
        }

    def _resume(self) -> None:
        saved = read_facts(self._out / STATE_FOLDER)
        saved["model"] = {**_LATER_SETTINGS, **saved["model"]}
        for part, now in self._facts().items():
            if isinstance(now, dict):
                _require_equal(part, saved[part], now)
        facts = self._state.load()
        self.step = facts["step"]
        self._start = facts["start"]
        self._best = math.inf if facts["best_val_loss"] is None else facts["best_val_loss"]


def _start_from(folder: Path, model: Thoughtbubbles) -> None:
    """Load the weights of a checkpoint into `model`; block length and budget may differ."""
    checkpoint = load_checkpoint(folder)
    found, wanted = (m.config.to_dict() for m in (checkpoint.model, model))
    for name in wanted.keys() - {"block_size", "max_block_size"}:
        if found[name] != wanted[name]:
            raise ValueError(f"start: {name} is {found[name]!r} in {folder} and {wanted[name]!r} here")
    model.load_state_dict(checkpoint.model.state_dict())


def _require_vocabulary(config: ModelConfig, vocab_size: int) -> None:
    if not 0 <= config.vocab_size - vocab_size <= MAX_PADDING:
        raise ValueError(f"vocab_size is {config.vocab_size} where the data's tokenizer has {vocab_size} ids")


def _require_equal(part: str, saved: dict[str, Any], now: dict[str, Any]) -> None:
    for name in sorted(now.keys() - _FREE_ON_RESUME):
        if saved.get(name) != now[name]:
            raise ValueError(f"resume: {name} ({part}) was {saved.get(name)!r} when saved and is {now[name]!r} now")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
