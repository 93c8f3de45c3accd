"""What a run tells while it goes: a progress bar in a terminal, JSON lines for programs, other tools' trackers."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from tqdm import tqdm

from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.tracking import Tracker


class RunLog:
    """Keeps losses on the device and reads them when a line is due; validation and saving stop its clock.

    Every rank has one, since reading a loss is done together; the first alone writes.
    """

    def __init__(
        self, path: Path, *, first_step: int, steps: int, tokens_per_step: int, peak: float | None, ranks: Ranks,
        trackers: Sequence[Tracker] = (),
    ) -> None:  # fmt: skip
        self._ranks = ranks
        self._file = path.open("a", encoding="utf-8") if ranks.first else None
        disable = None if ranks.first else True  # None: where there is a terminal
        self._bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True, disable=disable)
        self._tokens_per_step = tokens_per_step
        self._peak = peak
        self._trackers = trackers
        self._restart()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()

    def learned(self, losses: Tensor, flops: float) -> None:
        """One step is under way, of so many operations on all ranks; losses (accumulation,). Nothing is waited for."""
        self._losses.append(losses)
        self._flops += flops
        self._bar.update()

    def first_not_finite(self) -> tuple[int, int] | None:
        """Which of the batches since the last line had a loss that is no number, as steps back from the last one and
        the batch within it; None for none. Waits for the device and the ranks, which all get the same answer.
        """
        bad = (~self._read().isfinite()).nonzero()
        if not len(bad):
            return None
        at, index = bad[0].tolist()
        return len(self._losses) - at, index

    def write_train(self, step: int, learning_rate: float) -> None:
        """A line for the steps since the last one. Waits for the device."""
        loss = float(self._read().mean())
        seconds = time.perf_counter() - self._since
        rate = len(self._losses) * self._tokens_per_step / seconds
        self._bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=f"{rate:,.0f}")
        values = {"loss": round(loss, 5), "learning_rate": learning_rate, "tokens_per_second": round(rate),
                  "tflops": round(self._flops / seconds / 1e12, 3)}  # fmt: skip
        if self._peak is not None:
            values["mfu"] = round(self._flops / seconds / self._peak, 4)
        self._write(step, tokens=step * self._tokens_per_step, **values)
        self._restart()

    def write_validation(self, step: int, losses: Mapping[str, float]) -> None:
        """A line for a validation, `val_loss` and any others by name, which the clock leaves out."""
        if self._ranks.first:
            self._bar.write(f"step {step}: validation loss {losses['val_loss']:.4f}")
        self._write(step, **{name: round(loss, 5) for name, loss in losses.items()})
        self._restart()

    def _read(self) -> Tensor:
        """The losses since the last line, (steps,accumulation), their mean over the ranks."""
        losses = torch.stack(self._losses) if self._losses else torch.zeros((0, 1))
        return self._ranks.total(losses).cpu() / self._ranks.world_size

    def _write(self, step: int, **values: float) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for track in self._trackers:
            track(step, values)

    def _restart(self) -> None:
        self._losses: list[Tensor] = []
        self._flops = 0.0
        self._since = time.perf_counter()
