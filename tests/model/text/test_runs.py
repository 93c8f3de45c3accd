"""Long runs are cut and short ones left, wherever they stand."""

import re
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thoughtbubbles.model import Tokenizer
from thoughtbubbles.model.text import runs
from thoughtbubbles.model.text.runs import MAX_RUN, cut_runs, shorten_runs

MIXED = st.lists(st.tuples(st.sampled_from(["a", "é", "7", " ", "\n", "\u3000", "\x1c"]), st.integers(1, 40))).map(
    lambda parts: "".join(character * count for character, count in parts)
)


def whitespace(character: str) -> bool:
    """As Unicode has it, and not Python, for which U+001C to U+001F are whitespace too."""
    return character.isspace() and character not in "\x1c\x1d\x1e\x1f"


@given(MIXED, st.integers(2, 20))
def test_every_run_is_cut_into_parts_of_the_limit(text: str, limit: int) -> None:
    expected, cut = [], []
    for _, run in groupby(text, whitespace):
        characters = "".join(run)
        expected += [characters[i : i + limit] for i in range(0, len(characters), limit)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "MAX_RUN", limit)
        parts = list(cut_runs(text))
        shortened = shorten_runs(text)
    for part in parts:
        cut += ["".join(run) for _, run in groupby(part, whitespace)]
    assert "".join(parts) == text
    assert cut == expected
    assert shortened == "".join("".join(run)[:limit] for _, run in groupby(text, whitespace))


@given(MIXED)
def test_text_with_spaces_is_one_part(text: str) -> None:
    assert list(cut_runs(text)) == [text]
    assert shorten_runs(text) == text


@pytest.mark.parametrize("text", ["x" * 3 * MAX_RUN, "x" + " " * 2_000_000 + "x", "(" * MAX_RUN * 2 + " the"])
def test_text_that_no_tokenizer_takes_as_a_whole_is_encoded(tokenizer: Tokenizer, text: str) -> None:
    """tiktoken itself panics on a million spaces before a word, which no `except Exception` catches."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch(["the", text, ""]) == [tokenizer.encode("the"), ids, []]


def test_a_run_of_the_limit_is_encoded_as_ever(tokenizer: Tokenizer) -> None:
    text = "the" * (MAX_RUN // 3) + " the"
    assert re.fullmatch(rf"\S{{1,{MAX_RUN}}} the", text)
    assert tokenizer.encode(text) == tokenizer.encoding.encode_ordinary(text)
