"""The decoder of server-sent events: the standard's rules, whatever pieces the bytes come in."""

import itertools
import re
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thoughtbubbles_client.sse import Event, EventDecoder

CASES = {
    "one": (b"data: a\n\n", [Event("a")]),
    "two": (b"data: a\n\ndata: b\n\n", [Event("a"), Event("b")]),
    "returns": (b"data: a\rdata: b\r\rdata: c\r\r", [Event("a\nb"), Event("c")]),
    "both ends": (b"data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", [Event("a\nb"), Event("c")]),
    "mixed ends": (b"data: a\r\n\rdata: b\n\r\ndata: c\r\r\n", [Event("a"), Event("b"), Event("c")]),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [Event("a")]),
    "a mark that is not at the start": (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [Event("a")]),
    "a mark in the text": ("data: \ufeffa\n\n".encode(), [Event("\ufeffa")]),
    "comments": (b": keep-alive\n\n:\n:data: b\ndata: a\n: c\n\n", [Event("a")]),
    "lines": (b"data: a\ndata:\ndata: b\ndata\n\n", [Event("a\n\nb\n")]),
    "one space is not the text's": (b"data:a\ndata:  b\n\n", [Event("a\n b")]),
    "colons": (b'data: {"a": "b:c"}\n\n', [Event('{"a": "b:c"}')]),
    "nothing said": (b"data\n\n", [Event("")]),
    "names": (b"event: x\ndata: a\n\ndata: b\n\nevent:\ndata: c\n\n", [Event("a", "x"), Event("b"), Event("c")]),
    "a name without data": (b"event: ping\n\ndata: a\n\n", [Event("a")]),
    "other fields": (b"id: 1\nretry: 5\nwhat: ever\n Data: c\ndata : d\ndata: a\n\n", [Event("a")]),
    "unfinished": (b"data: a\n\ndata: b\n", [Event("a")]),
    "characters": ("data: é東🫧\r\n\r\n".encode(), [Event("é東🫧")]),
    "no line ends": ("data: \u2028\u0085\x0b\x1c\n\n".encode(), [Event("\u2028\x85\x0b\x1c")]),
    "half a character": (b"data: \xf0\x9f\xab\n\ndata: \xa7\n\n", [Event("\ufffd"), Event("\ufffd")]),
    "nothing": (b"", []),
}  # fmt: skip


def decoded(chunks: Iterable[bytes]) -> list[Event]:
    decoder = EventDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def cut(data: bytes, *places: int) -> list[bytes]:
    return [data[start:end] for start, end in itertools.pairwise((0, *places, len(data)))]


@pytest.mark.parametrize(("data", "events"), CASES.values(), ids=CASES)
def test_every_cut(data: bytes, events: list[Event]) -> None:
    assert decoded([data]) == events
    assert decoded(data[place : place + 1] for place in range(len(data))) == events
    for places in itertools.combinations_with_replacement(range(len(data) + 1), 2):
        assert decoded(cut(data, *places)) == events


def test_an_event_is_told_with_the_byte_that_ends_it() -> None:
    """A client that waited for the line feed which may follow a return would be one event late."""
    for end in (b"\n\n", b"\r\r", b"\r\n\r"):
        decoder = EventDecoder()
        assert decoder.feed(b"data: a" + end[:-1]) == []
        assert decoder.feed(end[-1:]) == [Event("a")]


def reference(data: bytes) -> list[Event]:
    """The standard's rules over a whole text, written another way: blocks between blank lines, fields by expression."""
    text = data.decode("utf-8", "replace").removeprefix("\ufeff")
    *lines, _unfinished = re.split("\r\n|\r|\n", text)
    events: list[Event] = []
    block: list[tuple[str, str]] = []
    for line in lines:
        if line:
            block += re.findall("^([^:]*)(?:: ?(.*))?$", line, re.DOTALL)
            continue
        if any(name == "data" for name, _ in block):
            name = [value for field, value in block if field == "event"][-1:] or [""]
            events.append(Event("\n".join(value for field, value in block if field == "data"), name[0] or "message"))
        block = []
    return events


PIECES = [
    b"data",
    b"event",
    b":",
    b" ",
    b"\r",
    b"\n",
    b"\r\n",
    b"\n\n",
    b"a",
    b"\xef\xbb\xbf",
    b"\xf0\x9f",
    b"\xab\xa7",
]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=40), st.lists(st.integers(0, 80), max_size=8))
def test_any_bytes_cut_anywhere(pieces: list[bytes], places: list[int]) -> None:
    data = b"".join(pieces)
    places = sorted(min(place, len(data)) for place in places)
    assert decoded(cut(data, *places)) == reference(data)
