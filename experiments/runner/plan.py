"""Read what a study trains and measures from its TOML file."""

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from thoughtbubbles.model import ModelConfig
from thoughtbubbles.training.config import TrainConfig
from thoughtbubbles.training.flops import flops_per_block
from thoughtbubbles.training.schedule import ratio_levels

Kind = Literal["tuning", "final"]
Result = dict[str, Any]
"""A line of the results file."""

TUNING_SEED = 100
"""None of the seeds that are reported."""
_MODEL = {field.name for field in fields(ModelConfig)}
_TRAIN = {field.name for field in fields(TrainConfig)} - {"seed", "learning_rate"}


class Run(NamedTuple):
    """One training: an arm at a size, a learning rate and a seed."""

    size: str
    arm: str
    kind: Kind
    seed: int
    data: str
    """Folder that it learns from, under the study's data."""
    model: ModelConfig
    training: TrainConfig

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        which = f"rate-{self.training.learning_rate:g}" if self.kind == "tuning" else f"seed-{self.seed}"
        return f"{self.size}-{self.arm}-{which}"

    @property
    def tokens(self) -> int:
        """Tokens that the run learns from."""
        return self.training.steps * self.training.sequences_per_step * self.model.block_size

    @property
    def operations(self) -> float:
        """Floating-point operations of the whole training."""
        sequences = self.training.steps * self.training.sequences_per_step
        if not self.training.random_ratio:
            return sequences * flops_per_block(self.model)
        return sequences * fmean(flops_per_block(self.model, ratio) for ratio in ratio_levels(self.model))

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the trained weights, JSON-ready: a result under other settings is another one."""
        return {"data": self.data, "model": self.model.to_dict(), "training": self.training.to_dict()}

    def is_of(self, result: Result) -> bool:
        """Return whether `result` is this run's. A setting that is newer than the result had its default."""
        settings = result["settings"]
        named = all(result[key] == getattr(self, key) for key in ("size", "arm", "kind", "seed"))
        return named and self.data == settings["data"] and (self.model, self.training) == _configs(settings)

    def find(self, results: Sequence[Result]) -> Result | None:
        """Return the first of `results` that is this run's; None if it has none."""
        return next(filter(self.is_of, results), None)


def _configs(settings: dict[str, Any]) -> tuple[ModelConfig, TrainConfig] | None:
    """Return what a result was made with; None for settings that there are no more."""
    try:
        return ModelConfig.from_dict(settings["model"]), TrainConfig(**settings["training"])
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large models are and how long they learn."""

    data: str
    """Folder to learn from, under the study's data."""
    final: dict[str, Any]
    """Settings of a run that is reported."""
    tuning: dict[str, Any] | None = None
    """Settings of a short run that chooses a learning rate."""
    rates: list[float] | None = None
    """Learning rates to choose from."""
    tuned_at: str | None = None
    """Another size whose choice of learning rates is used, in place of `tuning` and `rates`."""
    settings: dict[str, Any] | None = None
    """Settings of every arm."""
    arms: dict[str, dict[str, Any]] | None = None
    """Settings of single arms."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Arms and seeds at one size."""

    size: str
    arms: list[str]
    seeds: list[int]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That one arm is below another: in its loss, or in what the study measures beside it."""

    says: str
    lower: str
    than: str
    measure: str = "loss"
    """What is compared."""
    ratios: list[float] | None = None
    """Fork ratios of the two; None: each model's own."""

    def __post_init__(self) -> None:
        if self.ratios is not None and len(self.ratios) != 2:
            raise ValueError(f"ratios of a claim must be two, not {self.ratios}")


@dataclass(frozen=True, kw_only=True)
class Study:
    """A whole file."""

    evaluation: Any
    """How every model is measured: the study's own settings."""
    base: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    sizes: dict[str, Size]
    stages: list[Stage]
    claims: list[Claim]

    def run(self, size: str, arm: str, kind: Kind, seed: int, rate: float) -> Run:
        """Return one training. `ValueError` naming a setting that cannot be used."""
        at = self.sizes[size]
        own = [
            self.base,
            at.settings,
            self.arms[arm],
            (at.arms or {}).get(arm),
            at.tuning if kind == "tuning" else at.final,
        ]
        settings = {key: value for part in own if part for key, value in part.items()}
        try:
            if unknown := sorted(settings.keys() - _MODEL - _TRAIN):
                raise ValueError(f"there is no setting {unknown[0]!r}")
            model = ModelConfig.from_dict({key: settings[key] for key in settings.keys() & _MODEL})
            training = {key: settings[key] for key in settings.keys() & _TRAIN}
            return Run(size, arm, kind, seed, at.data, model, TrainConfig(**training, learning_rate=rate, seed=seed))
        except (TypeError, ValueError) as error:
            raise ValueError(f"size {size}: arm {arm}: {error}") from error

    def runs(self, results: Sequence[Result]) -> list[Run]:
        """Return every run that can be made now, the most important first: a reported one needs its arm's rate."""
        found = [run for stage in self.stages for run in self._runs(stage, results)]
        return list({run.name: run for run in found}.values())  # an arm may be in several stages

    def missing(self, results: Sequence[Result]) -> list[Run]:
        """Return the runs that can be made now and have no result."""
        return [run for run in self.runs(results) if not any(map(run.is_of, results))]

    def tuning_runs(self, size: str, arm: str) -> list[Run]:
        """Return the runs that choose the learning rate of an arm at a size."""
        at = self.sizes[size].tuned_at or size
        return [self.run(at, arm, "tuning", TUNING_SEED, rate) for rate in self.sizes[at].rates or ()]

    def best_rate(self, size: str, arm: str, results: Sequence[Result]) -> float | None:
        """Return the rate of the lowest loss on the tuning split; None while a rate has no result.

        A run that diverged has the loss None, and is the best of none. `ValueError` where all have diverged.
        """
        losses = {}
        for run in self.tuning_runs(size, arm):
            result = run.find(results)
            if result is None:
                return None
            losses[run.training.learning_rate] = math.inf if result["loss"] is None else result["loss"]
        best = min(losses, key=lambda rate: losses[rate])
        if losses[best] == math.inf:
            raise ValueError(f"size {size}: arm {arm}: training diverged at every learning rate: {list(losses)}")
        return best

    def _runs(self, stage: Stage, results: Sequence[Result]) -> Iterator[Run]:
        tuning = [self.tuning_runs(stage.size, arm) for arm in stage.arms]
        yield from (run for of_a_rate in zip(*tuning, strict=True) for run in of_a_rate)
        best = {arm: self.best_rate(stage.size, arm, results) for arm in stage.arms}
        for seed in stage.seeds:
            for arm, rate in best.items():
                if rate is not None:
                    yield self.run(stage.size, arm, "final", seed, rate)


def read_study(path: Path, evaluation: type[Any]) -> Study:
    """Return the study in the TOML file `path`, whose table `evaluation` has the fields of that dataclass.

    `ValueError` naming what is wrong, `OSError` if it cannot be read.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        study = Study(
            evaluation=evaluation(**table["evaluation"]), base=table["base"], arms=table["arms"],
            sizes={name: Size(**size) for name, size in table["sizes"].items()},
            stages=[Stage(**stage) for stage in table["stages"]],
            claims=[Claim(**claim) for claim in table.get("claims", [])],
        )  # fmt: skip
        _check(study)
    except KeyError as missing:
        raise ValueError(f"{path}: {missing.args[0]} is missing") from missing
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return study


def _check(study: Study) -> None:
    """Raise `ValueError` for a name that nothing has, or a run that cannot be made."""
    for name, size in study.sizes.items():
        if size.tuned_at is not None and not getattr(study.sizes.get(size.tuned_at), "rates", None):
            raise ValueError(f"size {name}: tuned_at names {size.tuned_at!r}, which is no size with rates")
        if size.tuned_at is None and not (size.rates and size.tuning):
            raise ValueError(f"size {name}: needs rates and tuning, or tuned_at")
        _require_known(size.arms or {}, study.arms, "arm")
    _require_known([stage.size for stage in study.stages], study.sizes, "size")
    sides = [side for claim in study.claims for side in (claim.lower, claim.than)]
    _require_known([*sides, *(arm for stage in study.stages for arm in stage.arms)], study.arms, "arm")
    for stage in study.stages:
        for arm in stage.arms:
            study.tuning_runs(stage.size, arm)
            study.run(stage.size, arm, "final", 0, 1e-3)


def _require_known(names: Sequence[str] | Mapping[str, Any], known: Mapping[str, Any], what: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"there is no {what} {name!r}")
