"""What a run tells while it goes: a progress bar for people, JSON lines for programs."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor
from tqdm import tqdm


class RunLog:
    """Adds up losses on the device and reads them when a line is due; validation and saving stop its clock."""

    def __init__(self, path: Path, first_step: int, steps: int, tokens_per_step: int) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True)
        self._tokens_per_step = tokens_per_step
        self._loss: Tensor | float = 0.0
        self._steps = 0
        self._since = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()
        self._file.close()

    def learned(self, loss: Tensor) -> None:
        """One step is under way; nothing is waited for."""
        self._loss = self._loss + loss
        self._steps += 1
        self._bar.update()

    def write_train(self, step: int, learning_rate: float) -> None:
        """A line for the steps since the last one. Waits for the device."""
        loss = float(self._loss) / self._steps
        rate = self._steps * self._tokens_per_step / (time.perf_counter() - self._since)
        self._bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=f"{rate:,.0f}")
        self._write(step=step, tokens=step * self._tokens_per_step, loss=round(loss, 5), learning_rate=learning_rate,
                    tokens_per_second=round(rate))  # fmt: skip
        self._restart()

    def write_validation(self, step: int, loss: float) -> None:
        """A line for a validation, which the clock leaves out."""
        self._bar.write(f"step {step}: validation loss {loss:.4f}")
        self._write(step=step, val_loss=round(loss, 5))
        self._restart()

    def _write(self, **values: float) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def _restart(self) -> None:
        self._loss = 0.0
        self._steps = 0
        self._since = time.perf_counter()
