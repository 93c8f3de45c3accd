"""Log a run: a progress bar in a terminal, JSON lines in a file, and trackers of other tools."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from thoughtbubbles.model import lock_file
from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.strict_json import strict_json
from thoughtbubbles.training.tracking import Tracker


class RunLog:
    """Collects losses on the device and reads them when a line is due; what is `untimed` is no part of the speed.

    Every rank has one, because reading a loss is a collective; only rank 0 writes. Raises `ValueError` if another run
    writes to the same file.
    """

    def __init__(
        self, path: Path, *, first_step: int, steps: int, tokens_per_step: int, peak: float | None, ranks: Ranks,
        trackers: Sequence[Tracker] = (),
    ) -> None:  # fmt: skip
        self._ranks = ranks
        self._file = _open_alone(path) if ranks.first else None
        disable = None if ranks.first else True  # None: shown in a terminal only
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

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Leave the time of the block out of the speed. The device must have finished all steps before it."""
        begin = time.perf_counter()
        yield
        self._since += time.perf_counter() - begin

    def add_step(self, losses: Tensor, flops: float) -> None:
        """Record a step: its losses (accumulation,) and its operations on all ranks. Does not wait for the device."""
        self._losses.append(losses)
        self._flops += flops
        self._bar.update()

    def first_not_finite(self) -> tuple[int, int] | None:
        """Return the first batch since the last line whose loss is NaN or infinite, or None. All ranks get the same.

        The batch is given as the number of steps back from now, and its index within the step. Waits for the device.
        """
        bad = (~self._read().isfinite()).nonzero()
        if not len(bad):
            return None
        at, index = bad[0].tolist()
        return len(self._losses) - at, index

    def write_train(self, step: int, learning_rate: float) -> None:
        """Write a line for the steps since the last line. Waits for the device."""
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
        """Write a line for a validation: `val_loss` and further losses by name."""
        if self._ranks.first:
            self._bar.write(f"step {step}: validation loss {losses['val_loss']:.4f}")
        self._write(step, **{name: round(loss, 5) for name, loss in losses.items()})

    def _read(self) -> Tensor:
        """Return the losses (steps,accumulation) since the last line, averaged over the ranks."""
        losses = torch.stack(self._losses) if self._losses else torch.zeros((0, 1))
        return self._ranks.total(losses).cpu() / self._ranks.world_size

    def _write(self, step: int, **values: float) -> None:
        if self._file is None:
            return
        self._file.write(strict_json({"step": step, **values}) + "\n")
        self._file.flush()
        for track in self._trackers:
            track(step, values)

    def _restart(self) -> None:
        self._losses: list[Tensor] = []
        self._flops = 0.0
        self._since = time.perf_counter()


def _open_alone(path: Path) -> TextIO:
    """Open a file for appending, without a last line that was cut off. Raise `ValueError` if a run has it open."""
    file = path.open("a", encoding="utf-8")
    if not lock_file(file):
        file.close()
        raise ValueError(f"out: another run is writing to {path.parent}; stop it, or choose another folder")
    file.truncate(path.read_bytes().rfind(b"\n") + 1)
    return file
