"""Text whose difficulty is known: segments of six tasks, each with a difficulty n, in one stream.

A character is a token. A segment begins with its task's letter and ends with a full stop; its answer stands behind `=`.

task          segment of difficulty n                                                      answer
copy          `c`, n letters                                                               the same letters
noise         `x`, n letters                                                               n random letters
sums          `s`, n digits from 0 to 4                                                    their sum modulo 5
lookups       `l`, eight keys, each with a digit, `:`, n keys                              their digits' sum modulo 5
permutations  `p`, n letters, each of which swaps two of five places                       01234 after the swaps
hops          `h`, 17 pairs of letters, which make one circle, `:`, a letter, n times `>`  the letter n steps on

Copies are easy and noise cannot be learned, whatever n is. Sums and look-ups combine n things that can be found side by
side (wide); permutations and hops are n steps, each of which needs the one before (deep).
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from random import Random
from typing import Literal, NamedTuple, get_args

Task = Literal["copy", "noise", "sums", "lookups", "permutations", "hops"]
TASKS: tuple[Task, ...] = get_args(Task)
WIDE: tuple[Task, ...] = ("sums", "lookups")
DEEP: tuple[Task, ...] = ("permutations", "hops")

MODULUS = 5
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_DIGITS = "01234"
_KEYS = _LETTERS[:8]
_NODES = _LETTERS[:17]
_SWAPS = dict(zip(_LETTERS, combinations(range(5), 2), strict=False))


class Segment(NamedTuple):
    """One problem and its answer."""

    task: Task
    n: int
    """Its difficulty."""
    text: str
    answer: int
    """Where the answer begins in the text; it ends before the full stop."""


def segment(task: Task, n: int, random: Random) -> Segment:
    """Return a segment that is drawn from `random`. `ValueError` for a difficulty below 1."""
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    letter, make = _MAKERS[task]
    question, answer = make(n, random)
    return Segment(task, n, f"{letter}{question}={answer}.", len(question) + 2)


def segments(seed: int, difficulties: Sequence[int]) -> Iterator[Segment]:
    """Yield segments without end; each task and each difficulty is as likely as every other."""
    random = Random(seed)
    while True:
        yield segment(random.choice(TASKS), random.choice(difficulties), random)


def _copy(n: int, random: Random) -> tuple[str, str]:
    letters = _draw(_LETTERS, n, random)
    return letters, letters


def _noise(n: int, random: Random) -> tuple[str, str]:
    return _draw(_LETTERS, n, random), _draw(_LETTERS, n, random)


def _sums(n: int, random: Random) -> tuple[str, str]:
    digits = _draw(_DIGITS, n, random)
    return digits, _sum(digits)


def _lookups(n: int, random: Random) -> tuple[str, str]:
    table = dict(zip(random.sample(_KEYS, len(_KEYS)), _draw(_DIGITS, len(_KEYS), random), strict=True))
    keys = _draw(_KEYS, n, random)
    pairs = "".join(key + digit for key, digit in table.items())
    return f"{pairs}:{keys}", _sum(table[key] for key in keys)


def _permutations(n: int, random: Random) -> tuple[str, str]:
    letters, row = _draw("".join(_SWAPS), n, random), list(_DIGITS)
    for letter in letters:
        one, other = _SWAPS[letter]
        row[one], row[other] = row[other], row[one]
    return letters, "".join(row)


def _hops(n: int, random: Random) -> tuple[str, str]:
    """Return a question about the node `n` steps on, and its answer; the circle is longer, so that no path closes."""
    circle = random.sample(_NODES, len(_NODES))
    pairs = [one + other for one, other in pairwise([*circle, circle[0]])]
    random.shuffle(pairs)
    begin = random.randrange(len(circle))
    return f"{''.join(pairs)}:{circle[begin]}{'>' * n}", circle[(begin + n) % len(circle)]


def _draw(symbols: str, n: int, random: Random) -> str:
    return "".join(random.choices(symbols, k=n))


def _sum(digits: "str | Iterator[str]") -> str:
    return str(sum(map(int, digits)) % MODULUS)


_MAKERS: dict[Task, tuple[str, Callable[[int, Random], tuple[str, str]]]] = {
    "copy": ("c", _copy),
    "noise": ("x", _noise),
    "sums": ("s", _sums),
    "lookups": ("l", _lookups),
    "permutations": ("p", _permutations),
    "hops": ("h", _hops),
}
