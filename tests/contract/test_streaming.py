"""Byte-exact streaming as a property: deltas = unstreamed text = the decoded ids, cut at the first stop."""

import codecs
from collections.abc import Sequence

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.contract.conftest import PIECES
from tests.server.harness import Json, Running, chunks, joined
from thoughtbubbles.model import Tokenizer

TOKENS = 20
IDS = st.integers(0, len(PIECES))
FRAGMENTS = [str(number) for number in range(256, len(PIECES))]

PROMPT = st.lists(IDS, min_size=1, max_size=12) | st.text("🫧é東京👩\u200dab the", min_size=1, max_size=8)
ASKED = st.fixed_dictionaries(
    {
        "prompt": PROMPT,
        "n": st.integers(1, 3),
        "seed": st.integers(0, 999),
        "temperature": st.sampled_from([0, 1, 2]),
        # Else the model would rarely spell a character of several bytes.
        "logit_bias": st.dictionaries(st.sampled_from(FRAGMENTS), st.integers(3, 9), min_size=4, max_size=20),
        "echo": st.booleans(),
        "logprobs": st.none() | st.integers(0, 3),
    }
)


def expected(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str], include: bool) -> str:
    """Return the text of generated ids up to the first stop string that a token completes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    for token in ids:
        text += decoder.decode(b"" if token == tokenizer.end_of_text else tokenizer.token_bytes(token))
        found = [(text.index(stop), stop) for stop in stops if stop in text]
        if found:
            start, stop = min(found, key=lambda each: each[0])
            return text[: start + len(stop) * include]
    return text + decoder.decode(b"", final=True)


def made_bytes(tokenizer: Tokenizer, ids: Sequence[int]) -> bytes:
    """The bytes of generated ids, of which end-of-text has none."""
    return b"".join(tokenizer.token_bytes(token) for token in ids if token != tokenizer.end_of_text)


def ask_both_ways(server: Running, asked: Json) -> list[Json]:
    """The choices, which are the same when streamed."""
    choices = server.complete(**asked)["choices"]
    parts = chunks(server, **asked)
    assert [joined(parts, number) for number in range(asked["n"])] == choices
    return choices


def assert_offsets(tokenizer: Tokenizer, choice: Json, echo: bool) -> None:
    """If the bytes before a token are whole characters, its offset is their number."""
    ids = [*(choice["prompt_token_ids"] if echo else []), *choice["token_ids"]]
    offsets = choice["logprobs"]["text_offset"]
    assert len(offsets) == len(ids)
    assert offsets == sorted(offsets)
    for number, offset in enumerate(offsets):
        before = tokenizer.decode_bytes(ids[:number])
        try:
            assert offset == len(before.decode())
        except UnicodeDecodeError:
            assert offset <= len(before.decode(errors="replace"))


@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(ASKED, st.data())
def test_byte_for_byte(server: Running, tokenizer: Tokenizer, asked: Json, data: st.DataObject) -> None:
    asked = {**asked, "max_tokens": TOKENS, "return_token_ids": True}
    free = ask_both_ways(server, asked)
    texts = []
    for choice in free:
        text = expected(tokenizer, choice["token_ids"], (), include=False)
        prompt = tokenizer.decode_bytes(choice["prompt_token_ids"])
        whole = (prompt + made_bytes(tokenizer, choice["token_ids"])).decode(errors="replace")
        assert choice["text"] == (whole if asked["echo"] else text)
        texts.append(text)
        if asked["logprobs"] is not None:
            assert_offsets(tokenizer, choice, asked["echo"])

    # Stops that are cut anywhere out of what was said, and others that are almost there.
    cut = st.tuples(st.sampled_from(texts), st.integers(0, TOKENS), st.integers(1, 8)).map(
        lambda drawn: drawn[0][drawn[1] :][: drawn[2]]
    )
    stops = st.lists((cut | st.text("🫧éab the", min_size=1, max_size=3)).filter(bool), min_size=1, max_size=4)
    stop, include = data.draw(stops, "stop"), data.draw(st.booleans(), "include")
    stopped = ask_both_ways(server, {**asked, "stop": stop, "include_stop_str_in_output": include})
    for choice, unstopped in zip(stopped, free, strict=True):
        before = tokenizer.decode(choice["prompt_token_ids"]) if asked["echo"] else ""
        # Where an echoed prompt ends within a character, tests/server/test_echo.py says what follows.
        if not before.endswith("\ufffd"):
            assert choice["text"] == before + expected(tokenizer, unstopped["token_ids"], stop, include)
        assert choice["token_ids"] == unstopped["token_ids"][: len(choice["token_ids"])]
        assert choice["stop_reason"] in {None, *stop}
