"""Log-probabilities, OpenAI's four parallel arrays (API.md §2), as lm-eval and others read them."""

import math
from itertools import pairwise

import pytest
import torch

from tests.server.harness import Json, Running, chunks, joined
from thoughtbubbles.model import Thoughtbubbles
from thoughtbubbles.server.protocol.logprobs import MIN_LOGPROB, Token, logprobs_object, printed

ARRAYS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def logprobs(answer: Json) -> Json:
    (choice,) = answer["choices"]
    found = choice["logprobs"]
    assert tuple(found) == ARRAYS
    assert len({len(found[name]) for name in ARRAYS}) == 1
    return found


def test_echo_scores_equal_the_models_own(server: Running, model: Thoughtbubbles) -> None:
    ids = list(b"to be scored, to be read")
    found = logprobs(server.complete(prompt=ids, echo=True, logprobs=5, max_tokens=0))
    with torch.inference_mode():
        expected = model(torch.tensor([ids]), rule="causal").log_softmax(-1)[0]
    own = expected[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    torch.testing.assert_close(torch.tensor(found["token_logprobs"][1:]), own, atol=1e-4, rtol=0)
    best = torch.tensor([max(top.values()) for top in found["top_logprobs"][1:]])
    torch.testing.assert_close(best, expected[:-1].amax(1), atol=1e-4, rtol=0)


def test_a_generated_token_scores_the_same_when_echoed(server: Running) -> None:
    ask = {"prompt": list(b"again"), "max_tokens": 6, "logprobs": 0, "seed": 4, "temperature": 2, "top_k": 9}
    first = server.complete(**ask, return_token_ids=True)
    ids = ask["prompt"] + first["choices"][0]["token_ids"]
    echoed = logprobs(server.complete(prompt=ids, echo=True, logprobs=0, max_tokens=0))
    assert echoed["token_logprobs"][5:] == pytest.approx(logprobs(first)["token_logprobs"], abs=1e-4)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ({}, "length"),
        ({"logit_bias": {"256": 100}}, "stop"),
        ({"logit_bias": {"65": 100}, "stop_token_ids": [65]}, "stop"),
    ],
)
def test_what_lm_eval_sends(server: Running, field: Json, reason: str) -> None:
    """It drops the last entry blindly: there must be one for the generated token, whatever that is."""
    prompts = [list(b"context, continuation"), [256, *b"rolling"]]
    answer = server.complete(prompt=prompts, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True, **field)
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        found = choice["logprobs"]
        assert choice["finish_reason"] == reason
        assert [len(found[name]) for name in ARRAYS] == [len(prompt) + 1] * 4
        for own, top in zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True):
            assert own in top.values()
            assert own <= max(top.values())


def test_zero_is_the_chosen_token_alone(server: Running) -> None:
    found = logprobs(server.complete(prompt="zero", max_tokens=5, logprobs=0))
    assert found["top_logprobs"] == [
        {token: own} for token, own in zip(found["tokens"], found["token_logprobs"], strict=True)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_the_chosen_token_is_among_the_top(server: Running, seed: int) -> None:
    found = logprobs(server.complete(prompt="top", max_tokens=12, logprobs=3, temperature=2, seed=seed))
    for token, own, top in zip(*(found[name] for name in ARRAYS[:3]), strict=True):
        assert top[token] == own
        assert len(top) in {3, 4}
        assert sorted(top.values())[-3:] == sorted(
            value for name, value in top.items() if name != token or len(top) == 3
        )


def test_they_are_of_the_raw_distribution(server: Running) -> None:
    ask = {"prompt": "raw", "max_tokens": 1, "logprobs": 20}
    plain = logprobs(server.complete(**ask, temperature=0))["top_logprobs"][0]
    bent = logprobs(server.complete(**ask, temperature=2, logit_bias={"65": 100}, repetition_penalty=3))
    assert bent["tokens"] == ["A"]
    assert {**plain, "A": bent["token_logprobs"][0]} == bent["top_logprobs"][0]


@pytest.mark.parametrize("rule", ["causal", "dynamic"])
def test_rows_that_pad_the_vocabulary_are_no_tokens(server: Running, rule: str) -> None:
    """The model has seven rows more than its tokenizer has ids; some are among the likeliest here."""
    ask = {"prompt": "é<b>\n\n東&amp;", "max_tokens": 40, "logprobs": 20, "echo": True, "seed": 0}
    found = logprobs(server.complete(**ask, fork_selection=rule))
    assert {len(top) for top in found["top_logprobs"][1:]} <= {20, 21}
    assert joined(chunks(server, **ask, fork_selection=rule), 0)["logprobs"] == found


def test_offsets_point_into_the_text(server: Running) -> None:
    prompt = "naïve 🫧 bubbles"
    answer = server.complete(prompt=prompt, max_tokens=20, logprobs=0, echo=True, seed=1)
    found, text = logprobs(answer), answer["choices"][0]["text"]
    assert text.startswith(prompt)
    assert found["tokens"][6:11] == [" ", "bytes:\\xf0", "bytes:\\x9f", "bytes:\\xab", "bytes:\\xa7"]
    assert found["text_offset"][6:12] == [5, 6, 6, 6, 6, 7]
    assert all(a <= b <= len(text) for a, b in pairwise(found["text_offset"]))
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert text[offset : offset + len(token)] == token


def test_offsets_stay_inside_a_text_cut_by_a_stop(server: Running) -> None:
    ask = {"prompt": "cut", "max_tokens": 24, "seed": 5, "logit_bias": {str(byte): 20 for byte in b"abc"}}
    full = server.complete(**ask)["choices"][0]["text"]
    answer = server.complete(**ask, stop=full[4:7], logprobs=0)
    text, found = answer["choices"][0]["text"], logprobs(answer)
    assert len(found["tokens"]) == answer["usage"]["completion_tokens"] == len(text) + 3
    assert found["text_offset"] == [*range(len(text)), len(text), len(text), len(text)]


def test_minus_infinity_has_a_number() -> None:
    token = Token(1, -math.inf, ((2, -0.5), (3, -math.inf)), None, None, 0)
    found = logprobs_object([token], str)
    assert found["token_logprobs"] == [MIN_LOGPROB]
    assert found["top_logprobs"] == [{"1": MIN_LOGPROB, "2": -0.5, "3": MIN_LOGPROB}]


def test_of_two_that_print_alike_the_higher_stays() -> None:
    found = logprobs_object([Token(1, -3.0, ((2, -1.0), (3, -2.0)), None, None, 0)], lambda token_id: "same")
    assert found["top_logprobs"] == [{"same": -1.0}]


def test_both_arrays_hold_the_same_object() -> None:
    own, equal = -1.25, float("-1.25")
    found = logprobs_object([Token(1, own, ((1, equal),), None, None, 0)], str)
    assert found["top_logprobs"][0]["1"] is found["token_logprobs"][0] is own


@pytest.mark.parametrize(("token", "text"), [(b" the", " the"), ("é".encode(), "é"), (b"\xe2\x80", r"bytes:\xe2\x80")])
def test_fragments_print_as_bytes(token: bytes, text: str) -> None:
    assert printed(token) == text
