"""Text is shown as early as it may be: whole characters only, and nothing of a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thoughtbubbles.engine.detokenizer import Detokenizer
from thoughtbubbles.model import Tokenizer

BYTES = Tokenizer({bytes([byte]): byte for byte in range(256)}, "bytes")
TEXT = st.text(alphabet="ab stop é🫧", max_size=40)


def run(ids: list[int], stop: tuple[str, ...] = (), *, include_stop: bool = False) -> tuple[list[str], str | None]:
    """The pieces shown, the flushed end included, and the stop string if one was met."""
    detokenizer = Detokenizer(BYTES, stop, include_stop=include_stop)
    pieces = []
    for token_id in ids:
        piece = detokenizer.push(token_id)
        pieces.append(piece.text)
        if piece.stop is not None:
            return pieces, piece.stop
    return [*pieces, detokenizer.flush()], None


@given(st.lists(st.integers(0, 255), max_size=60))
def test_pieces_joined_are_the_decoded_ids(ids: list[int]) -> None:
    assert "".join(run(ids)[0]) == BYTES.decode(ids)


@given(TEXT)
def test_no_piece_holds_half_a_character(text: str) -> None:
    assert all("\ufffd" not in piece for piece in run(list(text.encode()))[0])


@given(TEXT, st.lists(st.text(alphabet="ab sto🫧", min_size=1, max_size=5), min_size=1, max_size=4))
def test_the_text_ends_before_the_first_stop(text: str, stops: list[str]) -> None:
    pieces, met = run(list(text.encode()), tuple(stops))
    shown = "".join(pieces)
    if met is None:
        assert shown == text
        assert not any(stop in text for stop in stops)
    else:
        # A stop is met as soon as it is complete, so what is shown ends where the earliest complete one begins.
        complete = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        seen = text[:complete]
        assert shown == seen[: min(seen.find(stop) for stop in stops if stop in seen)]


def test_only_what_could_become_a_stop_is_held_back() -> None:
    detokenizer = Detokenizer(BYTES, ("stop",))
    assert [detokenizer.push(ord(letter)).text for letter in "a stoa"] == ["a", " ", "", "", "", "stoa"]


def test_a_stop_is_shown_when_asked() -> None:
    assert run(list(b"one, two"), (", ",), include_stop=True) == (["o", "n", "e", "", ", "], ", ")


def test_a_stop_may_be_switched_off_for_a_while() -> None:
    detokenizer = Detokenizer(BYTES, ("b",))
    assert detokenizer.push(ord("b"), may_stop=False).text == "b"
    assert detokenizer.push(ord("b")).stop == "b"


@pytest.mark.parametrize(("text", "stop"), [("x", None), ("b", "b"), ("xb", "b"), ("c", "abc")])
def test_a_stop_that_was_ordinary_text_stays_so_while_it_is_held_back(text: str, stop: str | None) -> None:
    detokenizer = Detokenizer(BYTES, ("b", "abc"))
    assert [detokenizer.push(ord(letter), may_stop=False).text for letter in "ab"] == ["", ""]
    assert [detokenizer.push(ord(letter)).stop for letter in text] == [None] * (len(text) - 1) + [stop]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_half_a_character_at_the_end_is_replaced(cut: int) -> None:
    ids = list("🫧".encode())[:cut]
    assert run(ids)[0] == [""] * cut + ["\ufffd"]
