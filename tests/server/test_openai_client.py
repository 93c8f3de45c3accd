"""The official client, which most callers are built on."""

from collections.abc import Iterator

import openai
import pytest

from tests.server.harness import Running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=30) as client:
        yield client


def test_a_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=4, logprobs=2, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[2].text.startswith("b")
    assert len(answer.choices[0].logprobs.tokens) == 5
    assert answer.choices[0].logprobs.text_offset[:2] == [0, 1]
    assert answer.usage.completion_tokens == 16
    assert answer.usage.model_extra["stream_tokens"] > 16


def test_a_stream(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "prompt": "stream", "max_tokens": 9, "seed": 2}
    whole = client.completions.create(**ask, extra_body={"fork_ratio": 3})
    parts = list(
        client.completions.create(
            **ask, stream=True, stream_options={"include_usage": True}, extra_body={"fork_ratio": 3}
        )
    )
    assert "".join(part.choices[0].text for part in parts[:-1]) == whole.choices[0].text
    assert parts[-2].choices[0].finish_reason == "length"
    assert parts[-1].usage == whole.usage


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").model_extra["max_model_len"] == 64


def test_errors_have_their_class(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as mistake:
        client.completions.create(model="tiny", prompt="a", n=200)
    assert (mistake.value.code, mistake.value.param) == ("integer_above_max_value", "n")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-4", prompt="a")
    assert unknown.value.code == "model_not_found"
    assert unknown.value.request_id


def test_a_cancelled_stream_raises(client: openai.OpenAI, server: Running) -> None:
    server.engine.hold(after=1)
    with client.completions.create(model="tiny", prompt="a", logit_bias={"65": 100}, stream=True) as stream:
        server.client.post(f"/v1/completions/{next(stream).id}/cancel")
        with pytest.raises(openai.APIError, match="cancelled"):
            next(stream)
