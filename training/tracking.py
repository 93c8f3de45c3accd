"""Trackers for TensorBoard and Weights & Biases, each an optional extra."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from thoughtbubbles.model.extras import install_command


class Tracker(Protocol):
    """A function that receives each line of the log."""

    def __call__(self, step: int, values: Mapping[str, float], /) -> None:
        """Record `values` of step `step`."""


@contextmanager
def tensorboard(folder: Path) -> Iterator[Tracker]:
    """Yield a tracker that writes events to `folder`. Raise `ValueError` if tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ValueError(f"tensorboard is not installed: {install_command('tensorboard')}") from error
    with SummaryWriter(str(folder)) as writer:

        def track(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield track


@contextmanager
def weights_and_biases(project: str, folder: Path, settings: Mapping[str, Any]) -> Iterator[Tracker]:
    """Yield a tracker for a run of `project`, its files in `folder`; resumed training continues the same run.

    wandb's own environment variables (`WANDB_MODE`, `WANDB_API_KEY`) apply. Raises `ValueError` if wandb is not
    installed.
    """
    try:
        import wandb  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ValueError(f"wandb is not installed: {install_command('wandb')}") from error
    name = folder.resolve().name
    with wandb.init(project=project, dir=str(folder), name=name, id=name, resume="allow", config=dict(settings)) as run:

        def track(step: int, values: Mapping[str, float]) -> None:
            run.log(dict(values), step=step)

        yield track
