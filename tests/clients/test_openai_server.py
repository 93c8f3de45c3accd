"""The client against a server that speaks OpenAI's part alone."""

from collections.abc import Iterator

import pytest

from tests.clients.harness import MakeClient
from tests.clients.openai_only import openai_server
from thoughtbubbles_client import BadRequestError, Choice, Client, Message, Model, NotFoundError, Token, Usage

MESSAGES: list[Message] = [{"role": "user", "content": "Speak."}]
USAGE = Usage(prompt_tokens=2, completion_tokens=3)


@pytest.fixture(scope="module", params=[False, True], ids=["overlooks", "refuses"])
def strict(request: pytest.FixtureRequest) -> bool:
    """Whether unknown fields are refused."""
    return bool(request.param)


@pytest.fixture(scope="module")
def url(strict: bool) -> Iterator[str]:
    with openai_server(strict=strict) as url:
        yield url


@pytest.fixture
def client(make_client: MakeClient, url: str, strict: bool) -> Client:
    """A client that requests no fork counts from a server that would refuse them."""
    return make_client(f"{url}/v1", api_key="sk-1", fork_counts=not strict)


def test_completions(client: Client) -> None:
    answer = client.complete("Speak.", model="parrot", max_tokens=3)
    assert answer.choices == (Choice(index=0, text="one two three", finish_reason="stop"),)
    assert (answer.id, answer.model, answer.usage) == ("cmpl-9", "parrot", USAGE)


def test_tokens_have_no_fork_counts(client: Client) -> None:
    answer = client.complete("Speak.", model="parrot", logprobs=0)
    assert answer.tokens == (Token(text="one two three", logprob=-0.5, offset=0, fork_count=None),)
    with client.stream("Speak.", model="parrot", logprobs=0) as stream:
        assert [token.fork_count for part in stream for token in part.tokens] == [None, None, None]


@pytest.mark.parametrize("name", ["stream", "stream_chat"])
def test_streams(client: Client, name: str) -> None:
    with getattr(client, name)(MESSAGES if name == "stream_chat" else "Speak.", model="parrot") as stream:
        *parts, last = stream
    assert [part.text for part in parts] == ["one", " two", " three", ""]
    assert [part.choices[0].finish_reason for part in parts] == [None, None, None, "stop"]
    assert {part.tokens for part in parts} == {()}
    assert (last.choices, last.usage) == ((), USAGE)


def test_chats(client: Client) -> None:
    assert client.chat(MESSAGES, model="parrot").text == "one two three"


def test_models(client: Client) -> None:
    assert client.models() == [Model(id="parrot", created=9, owned_by="someone")]


def test_what_it_has_not_is_not_found(client: Client) -> None:
    for ask in (
        lambda: client.cancel("cmpl-9"),
        lambda: client.tokenize("a"),
        lambda: client.detokenize([1]),
        lambda: client.model("parrot"),
    ):
        with pytest.raises(NotFoundError) as raised:
            ask()
        assert (raised.value.status, raised.value.code) == (404, None)
        assert str(raised.value) == '404: {"detail":"Not Found"}'


def test_refusals(make_client: MakeClient, client: Client, url: str, strict: bool) -> None:
    with pytest.raises(BadRequestError, match="you must provide a model parameter"):
        client.complete("Speak.")
    asking = make_client(url)
    if not strict:
        assert asking.complete("Speak.", model="parrot", fork_ratio=2).text == "one two three"
        return
    with pytest.raises(BadRequestError, match="Unrecognized request argument supplied: return_fork_counts"):
        asking.complete("Speak.", model="parrot")
    with pytest.raises(BadRequestError, match="Unrecognized request argument supplied: fork_ratio"):
        client.complete("Speak.", model="parrot", fork_ratio=2)
