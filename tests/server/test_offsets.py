"""Offsets of tokens in their text, compared with the text."""

from hypothesis import example, given
from hypothesis import strategies as st

from thoughtbubbles.server.protocol.offsets import Offsets

# Bytes that begin, go on with and break characters, more often than chance would have it.
TRICKY = st.lists(
    st.sampled_from(
        [b"a", "é".encode(), "🫧".encode(), b"\xef\xbf\xbd", b"\xe2\x80", b"\xc3", b"\x80", b"\xff", b"\xed\xab"]
    )
)


def character_of_byte(data: bytes) -> list[int]:
    """For each byte, which character of the decoded whole it belongs to: the first that later bytes do not change."""
    return [
        min(len(data[:end].decode("utf-8", "replace")) for end in range(place + 1, len(data) + 1)) - 1
        for place in range(len(data))
    ]


@example(b"\xed\xab\xab\xab", [], 0)
@given(TRICKY.map(b"".join) | st.binary(max_size=12), st.lists(st.integers(1, 4), max_size=12), st.integers(0, 9))
def test_a_token_stands_where_its_first_byte_does(data: bytes, cuts: list[int], start: int) -> None:
    offsets, place = Offsets(start), 0
    owner = character_of_byte(data)
    for length in [*cuts, *[1] * len(data)]:
        if place < len(data):
            assert offsets.add(data[place : place + length]) == start + owner[place]
            place += length
