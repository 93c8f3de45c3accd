"""What the client makes of an answer's JSON; a server may leave out all that OpenAI's API does not demand."""

import httpx
import pytest

from tests.clients.harness import DONE, Json, MakeClient, answering, event, part, streaming
from thoughtbubbles_client import Choice, Completion, Model, Token, Usage

SCORES = {
    "tokens": ["a", "b"], "token_logprobs": [None, -1.5], "top_logprobs": [None, {"b": -1.5}], "text_offset": [0, 1],
}  # fmt: skip


def tokens_of(make_client: MakeClient, **choice: object) -> tuple[Token, ...]:
    """The tokens of a choice with these fields."""
    answer = part("ab")
    answer["choices"][0] |= choice
    tokens: tuple[Token, ...] = make_client(transport=answering(httpx.Response(200, json=answer))).complete().tokens
    return tokens


@pytest.mark.parametrize(
    ("choice", "tokens"),
    [
        ({}, ()),
        ({"fork_counts": [1, 3]}, (Token(fork_count=1), Token(fork_count=3))),
        ({"token_ids": [7, 8]}, (Token(id=7), Token(id=8))),
        ({"token_ids": [7, 8], "prompt_token_ids": [6]}, (Token(id=7), Token(id=8))),
        ({"token_ids": [7], "fork_counts": [2]}, (Token(id=7, fork_count=2),)),
        (
            {"token_ids": [8], "prompt_token_ids": [7], "fork_counts": [2, 4]},
            (Token(id=7, fork_count=2), Token(id=8, fork_count=4)),
        ),
        (
            {"logprobs": SCORES, "fork_counts": [2, 4]},
            (
                Token(fork_count=2, text="a", offset=0),
                Token(fork_count=4, text="b", offset=1, logprob=-1.5, top_logprobs={"b": -1.5}),
            ),
        ),
        ({"logprobs": {"tokens": ["a"], "token_logprobs": [-1.0]}}, (Token(text="a", logprob=-1.0),)),
        ({"token_ids": [], "fork_counts": [], "logprobs": {name: [] for name in SCORES}}, ()),
        ({"token_ids": None, "fork_counts": None}, ()),
    ],
)
def test_tokens(make_client: MakeClient, choice: Json, tokens: tuple[Token, ...]) -> None:
    assert tokens_of(make_client, **choice) == tokens


def test_a_token_shows_what_is_known_of_it() -> None:
    assert repr(Token(fork_count=3, id=0)) == "Token(fork_count=3, id=0)"


def test_all_that_our_server_tells(make_client: MakeClient) -> None:
    answer = part("a", created=5, system_fingerprint="f", usage={
        "prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3, "stream_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 1},
    })  # fmt: skip
    answer["choices"] += [{"index": 1, "text": "b", "finish_reason": "stop", "stop_reason": "c", "logprobs": None}]
    assert make_client(transport=answering(httpx.Response(200, json=answer))).complete() == Completion(
        id="cmpl-1",
        model="tiny",
        choices=(
            Choice(index=0, text="a", finish_reason=None),
            Choice(index=1, text="b", finish_reason="stop", stop_reason="c"),
        ),
        usage=Usage(prompt_tokens=2, completion_tokens=1, cached_tokens=1, stream_tokens=4),
        created=5,
        system_fingerprint="f",
    )


def test_a_chat(make_client: MakeClient) -> None:
    scores = {
        "content": [{"token": "a", "logprob": -1, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -2}]}]
    }
    answer = {
        "id": "chatcmpl-1", "model": "tiny", "choices": [{
            "index": 0, "message": {"role": "assistant", "content": "a"}, "logprobs": scores, "fork_counts": [2],
        }],
    }  # fmt: skip
    said = make_client(transport=answering(httpx.Response(200, json=answer))).chat([{"role": "user", "content": "?"}])
    assert said.text == "a"
    assert said.tokens == (Token(fork_count=2, text="a", logprob=-1, top_logprobs={"b": -2}),)
    assert said.usage is None


def test_a_streamed_chat(make_client: MakeClient) -> None:
    def delta(**said: str | None) -> bytes:
        return event({"id": "chatcmpl-1", "model": "tiny", "choices": [{"index": 0, "delta": said}]})

    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    last = event({"id": "chatcmpl-1", "model": "tiny", "choices": [], "usage": usage})
    pieces = [delta(role="assistant", content=""), delta(content="a"), delta(content=None), delta(), last, DONE]
    transport, _ = streaming(*pieces)
    parts = list(make_client(transport=transport).stream_chat([{"role": "user", "content": "?"}]))
    assert [each.text for each in parts] == ["", "a", "", "", ""]
    assert [each.usage for each in parts[-2:]] == [None, Usage(prompt_tokens=1, completion_tokens=1)]
    assert parts[-1].tokens == ()


def test_a_part_without_text(make_client: MakeClient) -> None:
    """LiteLLM's proxy ends a streamed completion with one."""
    transport, _ = streaming(event(part("a")), event(part(None)), DONE)
    assert [each.text for each in make_client(transport=transport).stream()] == ["a", ""]


def test_models_of_others(make_client: MakeClient) -> None:
    told = {"object": "list", "data": [{"id": "a"}, {"id": "b", "owned_by": "c", "fork_layers": [1, 2], "what": 1}]}
    models = make_client(transport=answering(httpx.Response(200, json=told))).models()
    assert models == [Model(id="a"), Model(id="b", owned_by="c", fork_layers=(1, 2))]
