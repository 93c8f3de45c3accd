"""Long work in pieces, so that cached requests may take a step between two of them."""

from collections.abc import Generator
from typing import TypeVar

Result = TypeVar("Result")
Pieces = Generator[int, None, Result]
"""Computes a piece whenever it is advanced, yields how many streams that computed in how many layers, multiplied, and
returns the result."""


def completed(pieces: Pieces[Result]) -> Result:
    """Compute all pieces that are left, and return the result."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: Result = end.value
            return result
