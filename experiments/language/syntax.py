"""Write the page's table of forks by a token's place in its clause."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from experiments.language.places import PLACES
from experiments.runner.markdown import table

BINS = 12
"""Parts of equally many tokens by entropy, within which places are compared."""
BEFORE = "any token before a sentence or clause opens"
TEXT = """\
Forks by where a token stands in its clause, in the mean, and in brackets how many more than those of other tokens
with as much entropy (in 12 parts of equally many tokens): a comma has few or many because of what may follow, which
is what entropy says already. The tags are HanTa's (`python -m experiments.language.places`), first seed. This
describes; no claim rests on it."""


def by_place(places: str, entropy: NDArray[np.float64], forks: Mapping[str, NDArray[np.int64]]) -> list[str]:
    """Return the table and its text, of the place, the entropy and each arm's forks of each token; [] if not of these.

    `places` has a letter a token.
    """
    if not forks or any(len(each) != len(places) for each in (entropy, *forks.values())):
        return []
    letters = np.array(list(places))
    masks = {name: letters == letter for letter, name in PLACES.items()}
    masks[BEFORE] = np.append(np.isin(letters[1:], list("SC")), False)
    beyond = {arm: counts - _expected(counts, entropy) for arm, counts in forks.items()}
    rows = [
        (name, f"{mask.mean():.1%}", f"{entropy[mask].mean():.2f}", *(
            f"{counts[mask].mean():.2f} ({beyond[arm][mask].mean():+.2f})" for arm, counts in forks.items()))
        for name, mask in masks.items() if mask.any()
    ]  # fmt: skip
    return [table(("place", "tokens", "entropy", *(f"`{arm}`" for arm in forks)), rows), TEXT]


def _expected(counts: NDArray[np.int64], entropy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each token the mean forks of the tokens with as much entropy."""
    expected = np.zeros(len(counts))
    for part in np.array_split(np.argsort(entropy, kind="stable"), BINS):
        expected[part] = counts[part].mean()
    return expected
