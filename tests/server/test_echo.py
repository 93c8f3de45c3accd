"""An echoed prompt that ends within a character, and the completion that ends it or does not."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.server.harness import Running, chunks, joined, keeping_up
from thoughtbubbles.server.protocol.echo import EchoJoiner

LETTERS = "aé€🫧\ufffd"
BYTES = st.binary(max_size=6) | st.text(LETTERS, max_size=3).map(str.encode)


@example(b"", b"\xed\xab\xab\xab\xab", 1, [1, 2, 3])  # ED AB begins a surrogate, which UTF-8 has not: one U+FFFD a byte
@given(st.text(LETTERS, max_size=3).map(str.encode), BYTES, st.integers(0, 12), st.lists(st.integers(0, 12)))
def test_what_is_joined_is_decoded_as_one(prompt: bytes, rest: bytes, cut: int, cuts: list[int]) -> None:
    """However the bytes are dealt out to prompt and tokens."""
    whole = prompt + rest
    prompt, completion = whole[:cut], whole[cut:]
    at = sorted({0, len(completion), *(each for each in cuts if each < len(completion))})
    tokens = [completion[start:end] for start, end in itertools.pairwise(at)]
    joiner, alone, text = EchoJoiner(prompt), b"", ""
    decoded = EchoJoiner(b"")._decoder  # as the engine decodes: fresh at the first byte
    text = joiner.text
    for token in tokens:
        text += joiner.join([token], decoded.decode(token), last=False)
        alone += token
    text += joiner.join([], decoded.decode(b"", final=True), last=True)
    assert text == whole.decode("utf-8", "replace")


@pytest.mark.parametrize("ends", [b"\xa9", b"A"], ids=["ends it", "breaks it"])
@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_a_character_between_prompt_and_completion(server: Running, ends: bytes, max_tokens: int) -> None:
    ask = {"prompt": [*b"caf\xc3"], "max_tokens": max_tokens, "echo": True, "logprobs": 0, "return_token_ids": True,
           "logit_bias": {str(ends[0]): 100}}  # fmt: skip
    choice = server.complete(**ask)["choices"][0]
    assert choice["text"] == (b"caf\xc3" + ends * max_tokens).decode("utf-8", "replace")
    first = 3 if ends == b"\xa9" else 4
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, *range(first, first + max_tokens)]
    with keeping_up(server):
        assert joined(chunks(server, **ask), 0) == choice


def test_a_stop_string_after_it(server: Running) -> None:
    ask = {"prompt": [*b"\xe2\x82"], "max_tokens": 9, "echo": True, "logit_bias": {"172": 100}, "stop": "\ufffd" * 3}
    choice = server.complete(**ask)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("€", "stop"), "a stop is looked for in the completion alone"
