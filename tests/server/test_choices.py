"""The limit of a request's choices; many choices of a client that disconnects delay no other client."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.harness import Running, Serve, events


@pytest.mark.parametrize(
    ("body", "name", "code", "made"),
    [
        ({"n": 9}, "n", "integer_above_max_value", "1 prompt with 9 choices each is 9 choices"),
        ({"best_of": 9}, "best_of", "integer_above_max_value", "1 prompt with 9 choices each is 9 choices"),
        ({"prompt": ["a"] * 9}, "prompt", "array_above_max_length", "9 prompts with 1 choice each are 9 choices"),
        ({"prompt": [[97]] * 3, "n": 3}, "n", "integer_above_max_value", "3 prompts with 3 choices each are 9 choices"),
        ({"prompt": ["a"] * 3, "n": 2, "best_of": 3}, "best_of", "integer_above_max_value", "are 9 choices"),
    ],
)
def test_a_request_of_more_choices_than_may_be(
    serve: Serve, body: dict[str, object], name: str, code: str, made: str
) -> None:
    with serve(max_choices=8) as server:
        error = server.error(400, **body)
        assert (error["param"], error["code"], error["type"]) == (name, code, "invalid_request_error")
        assert error["message"].startswith(f"Invalid {name!r}: ")
        assert made in error["message"]
        assert error["message"].endswith("but this server computes at most 8 for a request (max_choices).")
        assert len(server.complete(prompt=["a"] * 4, n=2, max_tokens=1)["choices"]) == 8


def test_a_chat_of_more_choices_than_may_be(serve: Serve) -> None:
    with serve(max_choices=2) as server:
        body = {"messages": [{"role": "user", "content": "a"}], "n": 3, "max_tokens": 1}
        response = server.client.post("/v1/chat/completions", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "n")
        assert "(max_choices)" in response.json()["error"]["message"]


def test_the_most_prompts_with_one_choice_each_are_taken_by_default(server: Running) -> None:
    most = server.service.settings.max_choices
    assert server.error(400, prompt=[[97]] * most, n=2)["param"] == "n"
    assert "queue" in server.error(400, prompt=[[97]] * most)["message"], "what this one has is too small for them"


def test_many_choices_that_leave_are_aborted_together(serve: Serve) -> None:
    """One command aborts them before the next step: the next request gets its first token in the step after that."""
    with serve(max_choices=4000, max_waiting_streams=100_000) as server, ThreadPoolExecutor() as pool:
        server.engine.hold(after=1)
        with events(server, prompt=[[97]] * 1000, n=4, max_tokens=40, ignore_eos=True) as told:
            next(told)
            server.engine.wait_until_held()
        server.wait_until_asked()
        other = pool.submit(server.complete, max_tokens=1)
        server.wait_until_asked(2)
        server.engine.let_go()
        assert other.result()["choices"]
        assert server.engine.steps == 3, "the one that stood still was not the last for those who had left"
        assert server.service.metrics.meter.snapshot.finished["abort"] == 4000


@pytest.mark.parametrize(("asks", "start"), [({"n": 3}, 65), ({"best_of": 3}, 97)])
def test_cached_tokens_are_those_of_earlier_requests(server: Running, asks: dict[str, int], start: int) -> None:
    """Choices of a prompt find what its first one computed; both the prompt and what is cached of it count once."""
    prompts = [[start + i % 7 for i in range(40)], [start + i % 9 for i in range(40, 80)]]

    def cached(prompt: list[list[int]], **body: object) -> int:
        usage = server.complete(prompt=prompt, max_tokens=2, **body)["usage"]
        assert usage["prompt_tokens"] == 40 * len(prompt)
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert cached(prompts[:1], **asks) == 0
    found = cached(prompts[:1])
    assert 0 < found < 40
    assert cached(prompts, **asks) == found


def test_cached_tokens_of_a_stream_are_those_of_earlier_requests(server: Running) -> None:
    body = {"prompt": [65] * 40, "n": 3, "max_tokens": 2, "stream_options": {"continuous_usage_stats": True}}
    with events(server, **body) as told:
        usages = [json.loads(each)["usage"] for each in told if each != "[DONE]"]
    assert {usage["prompt_tokens_details"]["cached_tokens"] for usage in usages} == {0}
