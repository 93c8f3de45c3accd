"""tokenizer.json gives the same ids as the checkpoint's own tokenizer."""

import random
from itertools import product

import pytest
from tokenizers import Tokenizer as HuggingFaceTokenizer

from thoughtbubbles.model import Tokenizer, shipped_checkpoint
from thoughtbubbles.model.huggingface.tokenizer import tokenizer_json
from thoughtbubbles.model.text.tokenizer import END_OF_TEXT

WORDS = [
    *("The", "river's", "banks", "don't", "", "flood,", "they'll\n\n\n12345", "rise;", "café", "naïve", "東京", "🫧"),
    *("👩\u200d👩\u200d👧", "Ελλάδα", "привет", "\t", "$3.50", "(x_y)", "..."),
]
ALPHABETS = {
    "latin": "abcdefghij etaoin shrdlu THE'",
    "bytes": "".join(map(chr, range(256))),
    "emoji": "🫧👩\u200d👧🏽❤️🇩🇪☕ ",
    "blanks": " \n\t\r\u00a0\u2003\u3000a",
    "unicode": "".join(chr(code) for code in range(0x300, 0x3000, 7)),
    "digits": "0123456789 .,'٣४",
}


@pytest.fixture(scope="module")
def shipped() -> tuple[Tokenizer, HuggingFaceTokenizer]:
    ours = Tokenizer.from_file(shipped_checkpoint() / "tokenizer.tiktoken")
    return ours, HuggingFaceTokenizer.from_str(tokenizer_json(ours))


def strings(number: int) -> list[str]:
    """Return random strings of words and of each alphabet."""
    dice = random.Random(0)
    kinds = [*ALPHABETS.values(), None]
    return [
        " ".join(dice.choices(WORDS, k=dice.randint(0, 12)))
        if (alphabet := kinds[i % len(kinds)]) is None
        else "".join(dice.choices(alphabet, k=dice.randint(0, 40)))
        for i in range(number)
    ]


def test_ten_thousand_strings(shipped: tuple[Tokenizer, HuggingFaceTokenizer]) -> None:
    ours, theirs = shipped
    for text in strings(10_000):
        ids = ours.encode(text)
        assert theirs.encode(text).ids == ids, text
        assert theirs.decode(ids) == text


def test_every_character_of_one_code_unit(shipped: tuple[Tokenizer, HuggingFaceTokenizer]) -> None:
    ours, theirs = shipped
    for code in [*range(0xD800), *range(0xE000, 0x10000)]:
        assert theirs.encode(chr(code)).ids == ours.encode(chr(code)), hex(code)


def test_every_token_has_its_id(shipped: tuple[Tokenizer, HuggingFaceTokenizer]) -> None:
    ours, theirs = shipped
    assert theirs.get_vocab_size() == ours.vocab_size
    for token in range(ours.vocab_size):
        text = ours.token_text(token)
        if text is not None:
            assert theirs.decode([token], skip_special_tokens=False) == text


def test_end_of_text_is_special(shipped: tuple[Tokenizer, HuggingFaceTokenizer]) -> None:
    ours, theirs = shipped
    assert theirs.encode(f"a{END_OF_TEXT}b").ids == [*ours.encode("a"), ours.end_of_text, *ours.encode("b")]
    assert theirs.decode([*ours.encode("a"), ours.end_of_text]) == "a"
    theirs.encode_special_tokens = True
    assert theirs.encode(f"a{END_OF_TEXT}b").ids == ours.encode(f"a{END_OF_TEXT}b")
    theirs.encode_special_tokens = False


def test_a_vocabulary_that_no_merges_explain() -> None:
    """tiktoken finds a whole word before it merges, and merges any pair that joins to a token."""
    pieces = [bytes([byte]) for byte in range(256)] + [b"abc", b"bc", b"ab", "東京".encode(), b" a", b"aa", b"aaaa"]
    ours = Tokenizer({piece: rank for rank, piece in enumerate(pieces)}, "pieces")
    theirs = HuggingFaceTokenizer.from_str(tokenizer_json(ours))
    for letters in product("abc ", repeat=6):
        text = "".join(letters)
        assert theirs.encode(text).ids == ours.encode(text), text
