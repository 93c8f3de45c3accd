"""What `benchmarks.study` trains and measures, read from its TOML file."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from model import ModelConfig
from training.config import TrainConfig
from training.flops import flops_per_block

_MODEL = {field.name for field in fields(ModelConfig)}
_TRAIN = {field.name for field in fields(TrainConfig)} - {"seed"}


class Run(NamedTuple):
    """One arm under one seed."""

    arm: str
    seed: int
    model: ModelConfig
    training: TrainConfig

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.arm}-{self.seed}"

    @property
    def tokens(self) -> int:
        """That it learns from."""
        return self.training.steps * self.training.sequences_per_step * self.model.block_size

    @property
    def operations(self) -> float:
        """Of learning from them, at the full ratio."""
        return self.training.steps * self.training.sequences_per_step * flops_per_block(self.model)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How every model is measured."""

    positions: int
    """Of the held-out text, at which the four rules are compared."""
    ratios: list[float]
    """Of the dial."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `benchmarks.study_report` compares and draws: names of arms."""

    regular: str
    """The first of the two that every arm is compared with."""
    forks: str
    """The second."""
    cost: list[str]
    """The figure of loss against operations."""
    dial: list[str]
    """The figure of loss against ratio: these alone are measured at several."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That one loss is below another. A side is an arm, or ARM:RULE for its loss at the positions of the rules."""

    says: str
    """In words."""
    lower: str
    than: str
    paper: str
    """The paper's own numbers."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A whole file."""

    evaluation: Evaluation
    report: Report
    runs: list[Run]
    """The most important first: every arm's first seed in the order of the file, then every second."""
    claims: list[Claim]

    def settings(self, run: Run) -> dict[str, Any]:
        """All that decides the result of `run`, JSON-ready: a result under other settings is another one."""
        return {
            "model": run.model.to_dict(),
            "training": run.training.to_dict(),
            "evaluation": asdict(self.evaluation),
        }

    def find(self, arm: str, seed: int) -> Run:
        """The run of that name and seed. `ValueError` when there is none."""
        for run in self.runs:
            if (run.arm, run.seed) == (arm, seed):
                return run
        raise ValueError(f"study: there is no arm {arm!r} with seed {seed}")


def read_study(path: Path) -> Study:
    """The study in the TOML file `path`. Raises `ValueError` naming what is wrong, `OSError` when it cannot be read."""
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
        base, arms = told["base"], told["arms"]
        study = Study(
            evaluation=Evaluation(**told["evaluation"]), report=Report(**told["report"]),
            runs=_runs(base, arms), claims=[Claim(**claim) for claim in told.get("claims", [])],
        )  # fmt: skip
    except KeyError as missing:
        raise ValueError(f"{path}: {missing.args[0]} is missing") from missing
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    _require_arms(study, set(arms), path)
    return study


def _runs(base: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> list[Run]:
    rounds: list[tuple[int, Run]] = []
    for name, changed in arms.items():
        settings = {**base, **changed}
        seeds = settings.pop("seeds")
        rounds += enumerate(_run(name, seed, settings) for seed in seeds)
    return [run for _, run in sorted(rounds, key=lambda each: each[0])]


def _run(name: str, seed: int, settings: Mapping[str, Any]) -> Run:
    if unknown := sorted(settings.keys() - _MODEL - _TRAIN):
        raise ValueError(f"arm {name}: there is no setting {unknown[0]!r}")
    try:
        model = ModelConfig.from_dict({key: settings[key] for key in settings.keys() & _MODEL})
        training = TrainConfig(**{key: settings[key] for key in settings.keys() & _TRAIN})
    except (TypeError, ValueError) as error:
        raise ValueError(f"arm {name}: {error}") from error
    return Run(name, seed, model, replace(training, seed=seed))


def _require_arms(study: Study, arms: set[str], path: Path) -> None:
    report = study.report
    sides = [side.partition(":")[0] for claim in study.claims for side in (claim.lower, claim.than)]
    for name in (report.regular, report.forks, *report.cost, *report.dial, *sides):
        if name not in arms:
            raise ValueError(f"{path}: there is no arm {name!r}")
