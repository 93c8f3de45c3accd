"""`fork_bias` and `return_fork_scores` over HTTP: what they change, what they return, and what is refused."""

import pytest
import torch

from tests.server.harness import Json, Running, chunks
from thoughtbubbles.model import ForkBias, Thoughtbubbles

PROMPT = [10, 20, 30, 40, 50]
REQUEST: Json = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
BIASES: list[Json] = [{"layer": 1, "position": 2, "select": "always"}, {"layer": 1, "position": 6, "bias": -4.5}]


def sent(server: Running, **fields: object) -> Json:
    (choice,) = server.complete(**REQUEST, **fields)["choices"]
    return choice


@torch.no_grad()
def test_scores_are_the_naive_forwards(server: Running, model: Thoughtbubbles) -> None:
    choice = sent(server, fork_bias=BIASES, return_fork_scores=True, return_fork_counts=True, echo=True)
    ids = torch.tensor([[*PROMPT, *choice["token_ids"]]])
    logits, forks = model(ids, return_forks=True, intervene=[ForkBias(**each) for each in BIASES])
    assert logits[0, 4:-1, :257].argmax(-1).tolist() == choice["token_ids"]
    assert len(choice["fork_scores"]) == 9
    for token, scores in enumerate(choice["fork_scores"]):
        assert len(scores) == len(forks)
        for own, fork in zip(scores, forks, strict=True):
            assert own == pytest.approx(fork.score[0, fork.of_token(token)].exp().tolist(), abs=1e-5)
        assert choice["fork_counts"][token] == len(scores[-1])


def test_streams_and_chats_carry_the_same_scores(server: Running) -> None:
    whole = sent(server, fork_bias=BIASES, return_fork_scores=True)["fork_scores"]
    streamed = chunks(server, **REQUEST, fork_bias=BIASES, return_fork_scores=True)
    assert [one for chunk in streamed for each in chunk["choices"] for one in each.get("fork_scores", [])] == whole
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "return_fork_scores": True}
    answer = server.client.post("/v1/chat/completions", json=chat | {"fork_bias": BIASES[:1]}).json()
    assert len(answer["choices"][0]["fork_scores"]) == 3


def test_nothing_is_returned_that_was_not_requested(server: Running) -> None:
    assert not {"fork_scores", "fork_counts"} & set(sent(server, fork_bias=BIASES))
    assert not {"fork_scores", "fork_counts"} & set(sent(server))


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"fork_bias": {}}, "fork_bias", "expected an array, but got an object"),
        ({"fork_bias": [3]}, "fork_bias[0]", "expected an object, but got an integer"),
        ({"fork_bias": [{"position": 1}]}, "fork_bias[0].layer", "Missing required parameter"),
        ({"fork_bias": [*BIASES, {"layer": 1, "position": 1.5}]}, "fork_bias[2].position", "expected an integer"),
        ({"fork_bias": [BIASES[0] | {"bias": 101}]}, "fork_bias[0].bias", "Expected a value <= 100, but got 101"),
        ({"fork_bias": [BIASES[0] | {"bias": "1"}]}, "fork_bias[0].bias", "expected a decimal"),
        ({"fork_bias": [BIASES[0] | {"select": "maybe"}]}, "fork_bias[0].select", "'always' or 'never'"),
        ({"fork_bias": [BIASES[0] | {"layer": 0}]}, "fork_bias[0].layer", "expected one of the fork layers 1"),
        ({"fork_bias": [BIASES[0] | {"layer": 10**30}]}, "fork_bias[0].layer", "expected one of the fork layers 1"),
        ({"fork_bias": [BIASES[0] | {"position": 9}]}, "fork_bias[0].position", "Expected a value <= 8, but got 9"),
        ({"fork_bias": [BIASES[0], BIASES[0]]}, "fork_bias[1]", "fork_bias[0] has the same layer and position"),
        ({"fork_bias": BIASES[:1] * 257}, "fork_bias", "Expected at most 256 elements, but got 257"),
        ({"return_fork_scores": 1}, "return_fork_scores", "expected a boolean"),
    ],
)  # fmt: skip
def test_mistakes_are_named(server: Running, fields: Json, param: str, message: str) -> None:
    answer = server.client.post("/v1/completions", json=REQUEST | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert message in error["message"]
