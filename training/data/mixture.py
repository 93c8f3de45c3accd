"""Mix several prepared folders, with weights from a TOML file, into one stream of windows."""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from thoughtbubbles.model.files.untrusted import require_regular
from thoughtbubbles.training.data.loader import Loader

Form = Literal["packed", "padded"]
Learn = Literal["all", "answers"]
BLOCK = 10_000
"""Every block of so many windows has the exact shares of the sets, rounded to whole windows."""


@dataclass(frozen=True, kw_only=True)
class MixtureSet:
    """One set of a mixture. Raises `ValueError` naming the setting if a value is not allowed."""

    data: Path
    """A prepared folder, or a published one."""
    weight: float
    """Its share of the windows relative to the other weights, which need not sum to 1."""
    form: Form = "packed"
    """`packed` cuts windows of L tokens from concatenated documents; `padded` gives each document its own window."""
    learn: Learn = "all"
    """`answers` leaves prompts out of the loss; it needs `padded` and a set with prompts and answers."""

    def __post_init__(self) -> None:
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float) or not 0 < self.weight < math.inf:
            raise ValueError(f"weight must be a finite number above 0, not {self.weight!r}")
        if self.form not in get_args(Form):
            raise ValueError(f"form must be one of {get_args(Form)}, not {self.form!r}")
        if self.learn not in get_args(Learn):
            raise ValueError(f"learn must be one of {get_args(Learn)}, not {self.learn!r}")
        if self.learn == "answers" and self.form != "padded":
            raise ValueError('learn = "answers" needs form = "padded"')


def read_mixture(path: Path, root: Path | None = None) -> dict[str, MixtureSet]:
    """Return the sets under `[sets]` in the TOML file `path`, sorted by name.

    Folders are relative to `root` (None: to the file). Raises `ValueError` naming the mistake.
    """
    try:
        tables = tomllib.loads(require_regular(path).read_text(encoding="utf-8-sig")).get("sets")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"data: {path}: {error}") from error
    if not isinstance(tables, dict) or not tables:
        raise ValueError(f"data: {path} needs a table [sets.NAME] for each of its sets")
    where = {name: f"data: {path}: [sets.{name}]" for name in sorted(tables)}
    return {name: _mixture_set(tables[name], where[name], root or path.parent) for name in where}


class Mixture(Loader):
    """A stream in which each loader has its share of the windows, in the loader's own order."""

    def __init__(self, loaders: Sequence[Loader], weights: Sequence[float], seed: int) -> None:
        """Mix `loaders` by `weights`. Raise `ValueError` for a weight below one window in `BLOCK`."""
        self._loaders = loaders
        self._counts = whole_shares(weights, BLOCK)
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._draw_order)
        if not self._counts.all():
            raise ValueError(f"weight: {min(weights)} of {sum(weights)} is less than one window in {BLOCK}")

    def window(self, index: int) -> NDArray[np.int64]:
        """As `Loader.window`."""
        block, position = divmod(index, BLOCK)
        which, before = self._order(block)[position]
        loader: Loader = self._loaders[which]
        return loader.window(block * int(self._counts[which]) + int(before))

    def _draw_order(self, block: int) -> NDArray[np.int64]:
        """Return (BLOCK,2): for each window of a block its loader, and the loader's earlier windows of that block."""
        ordered = np.repeat(np.arange(len(self._loaders)), self._counts)
        which = np.random.default_rng((self._seed, block)).permutation(ordered)
        before = np.empty(BLOCK, dtype=np.int64)
        before[np.argsort(which, kind="stable")] = np.concatenate([np.arange(count) for count in self._counts])
        return np.stack([which, before], axis=1)


def whole_shares(weights: Sequence[float], total: int) -> NDArray[np.int64]:
    """Return `total` divided by `weights` into whole numbers: rounded down, the rest to the largest remainders."""
    exact = np.asarray(weights, dtype=np.float64) * (total / sum(weights))
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: total - shares.sum()]] += 1
    return shares


def _mixture_set(table: object, where: str, root: Path) -> MixtureSet:
    if not isinstance(table, dict) or not isinstance(table.get("data"), str) or "weight" not in table:
        raise ValueError(f"{where} needs data, a folder, and weight")
    if unknown := sorted(table.keys() - {field.name for field in fields(MixtureSet)}):
        raise ValueError(f"{where}: {', '.join(unknown)} is no setting of a set")
    try:
        return MixtureSet(**{**table, "data": root / table["data"]})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
