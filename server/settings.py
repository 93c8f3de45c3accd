"""Everything an operator can set, in one frozen object read from the command line."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Self, get_args, get_type_hints


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What `thoughtbubbles serve` runs with; each setting's prose is its `--help`.

    Raises `ValueError` naming the setting that cannot be.
    """

    host: Annotated[str, "address to listen on; the default can be reached from this machine alone"] = "127.0.0.1"
    port: Annotated[int, "port to listen on; 0 takes any free one"] = 8000
    checkpoint: Annotated[Path | None, "checkpoint folder (the one in checkpoints/)"] = None
    model_name: Annotated[str | None, "name the model is served under (the checkpoint folder's)"] = None
    device: Annotated[str, "torch device the model runs on, such as cpu or cuda"] = "cpu"
    dtype: Annotated[str, "precision of weights and activations: float32 or bfloat16"] = "float32"
    threads: Annotated[int | None, "CPU threads that torch computes with (one fewer than torch would)"] = None
    max_model_len: Annotated[int | None, "most tokens of prompt and completion (those of a training block)"] = None
    max_batch_size: Annotated[int, "most requests computed in one step"] = 32
    max_waiting_streams: Annotated[int, "most streams that prompts waiting for a place may need; more are refused"] = (
        1 << 18
    )
    cache_bytes: Annotated[int, "memory of the fork-state cache"] = 1 << 30
    max_body_bytes: Annotated[int, "longest request body that is read"] = 8 << 20
    keep_alive_seconds: Annotated[float, "a silent stream sends a comment this often"] = 15.0
    stall_seconds: Annotated[float, "a step longer than this makes /ready fail"] = 60.0
    drain_seconds: Annotated[float, "on SIGTERM, how long running requests may take to finish"] = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, not {self.port}")
        if self.dtype not in {"float32", "bfloat16"}:
            raise ValueError(f"dtype must be float32 or bfloat16, not {self.dtype!r}")
        for name in (
            "threads",
            "max_waiting_streams",
            "max_body_bytes",
            "keep_alive_seconds",
            "stall_seconds",
            "drain_seconds",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """The settings of a parsed command line."""
        return cls(**{setting.name: getattr(arguments, setting.name) for setting in fields(cls)})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` one option for every setting."""
    hints = get_type_hints(ServerSettings, include_extras=True)
    for setting in fields(ServerSettings):
        kind, prose = get_args(hints[setting.name])
        shown = "" if setting.default is None else " (%(default)s)"
        option = f"--{setting.name.replace('_', '-')}"
        parser.add_argument(option, type=_parser_of(kind), default=setting.default, help=prose + shown)


def _parser_of(kind: Any) -> Any:  # noqa: ANN401 (a type, or a union of one with None)
    return next((each for each in get_args(kind) if each is not type(None)), kind)
