"""Each token has the place of its word, however tokens cut words and characters, and forks are compared by place."""

from collections.abc import Sequence

import numpy as np
import pytest

from experiments.language.places import PLACES, places, read_places
from experiments.language.syntax import BEFORE, by_place

TAGS = {"that": "CJT", "who": "PNQ", "and": "CJC", "river": "NN1", "came": "VVD", "was": "VBD", "cold": "AJ0"}


def tag(words: Sequence[str]) -> list[str]:
    return [TAGS.get(word.lower(), "AT0") for word in words]


def of(*tokens: str) -> str:
    return places([token.encode() for token in tokens], tag)


def test_a_token_stands_where_its_word_does() -> None:
    text = ("", "The", " man", " who", " ca", "me", ",", " and", " that", " riv", "er", " was", " cold", ".", " It")
    assert of(*text) == "-SFCWIPACWIFWES"


def test_a_sentence_begins_after_quotes_and_blank_lines() -> None:
    assert of("“", "It", " was", " cold", ".", "”", " That", "\n\n", "That", " was") == "PSFWEPS-SF"


@pytest.mark.parametrize("text", [("Mr", ".", " That"), ("A", ".", " That"), ("It", ",", " that")])
def test_no_sentence_begins_after_an_abbreviation(text: tuple[str, ...]) -> None:
    assert of(*text)[-1] == "C"


def test_tokens_may_cut_characters() -> None:
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert places([b"The", b" caf", first, second, b" ", b"was", b" \xff"], tag) == "SFII-FP"


def test_the_committed_places_are_of_the_kept_windows() -> None:
    found = read_places()
    assert len(found) == 8 * 512
    assert set(found) == set(PLACES)


def test_forks_are_compared_with_those_of_tokens_with_as_much_entropy() -> None:
    places_, entropy = "SFWC" * 30, [0.0, 1.0, 0.0, 1.0] * 30
    forks = np.array([1, 0, 3, 2] * 30)
    [rows, _] = by_place(places_, np.array(entropy), {"2l": forks})
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in rows.splitlines()[2:]}
    assert cells[PLACES["S"]] == ["25.0%", "0.00", "1.00 (-1.00) |"]
    assert cells[PLACES["C"]] == ["25.0%", "1.00", "2.00 (+1.00) |"]
    before = (30 * [3.0] + 29 * [2.0], 59 / 120)  # W stands before C, and C before S but at the end
    assert cells[BEFORE] == [f"{before[1]:.1%}", "0.49", f"{np.mean(before[0]):.2f} (+1.00) |"]
    assert by_place("SF", np.array(entropy), {"2l": forks}) == []
