"""POST /v1/completions, whole answers (API.md §1 and §2)."""

from urllib.parse import unquote

import pytest

from tests.server.harness import Json, Running

END_OF_TEXT = 256


def choices(answer: Json) -> list[Json]:
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(answer["choices"])))
    return answer["choices"]


def texts(answer: Json) -> list[str]:
    return [choice["text"] for choice in choices(answer)]


def test_the_answer_has_openais_form(server: Running) -> None:
    answer = server.complete(prompt="The river", max_tokens=4)
    assert set(answer) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"
    (choice,) = choices(answer)
    assert set(choice) == {"index", "text", "logprobs", "finish_reason", "stop_reason"}
    assert choice["finish_reason"] == "length"
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (9, 4, 13)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert usage["stream_tokens"] >= 12


@pytest.mark.parametrize(
    "name", ["model", "prompt", "max_tokens", "stop", "logprobs", "seed", "fork_ratio", "stream_options"]
)
def test_null_means_absent(server: Running, name: str) -> None:
    given = {"prompt": "a", "max_tokens": 2, "temperature": 0}
    without = {key: value for key, value in given.items() if key != name}
    assert texts(server.complete(**{**given, name: None})) == texts(server.complete(**without))


def test_nothing_is_the_end_of_text_token(server: Running) -> None:
    told = [
        server.complete(**prompt, max_tokens=3, temperature=0, return_token_ids=True)
        for prompt in ({}, {"prompt": ""}, {"prompt": [END_OF_TEXT]}, {"prompt": [""]})
    ]
    assert {tuple(choices(answer)[0]["prompt_token_ids"]) for answer in told} == {(END_OF_TEXT,)}
    assert len({tuple(choices(answer)[0]["token_ids"]) for answer in told}) == 1


def test_text_and_its_ids_are_the_same_prompt(server: Running) -> None:
    as_text = server.complete(prompt="héllo", max_tokens=8, temperature=0)
    as_ids = server.complete(prompt=list("héllo".encode()), max_tokens=8, temperature=0)
    assert texts(as_text) == texts(as_ids)
    assert as_ids["usage"]["prompt_tokens"] == 6


def test_prompts_times_choices_come_in_order(server: Running) -> None:
    prompts = [[97, 98], [99], [100, 101, 102]]
    together = server.complete(prompt=prompts, n=2, max_tokens=5, seed=7, return_token_ids=True)
    assert [choice["prompt_token_ids"] for choice in choices(together)] == [each for each in prompts for _ in range(2)]
    assert together["usage"]["prompt_tokens"] == 6
    alone = [server.complete(prompt=prompt, n=2, max_tokens=5, seed=7) for prompt in prompts]
    assert texts(together) == [text for answer in alone for text in texts(answer)]
    assert texts(together)[0] != texts(together)[1]


def test_a_seed_repeats(server: Running) -> None:
    ask = {"prompt": "once", "max_tokens": 12, "seed": -(2**63)}
    assert texts(server.complete(**ask)) == texts(server.complete(**ask))
    assert texts(server.complete(**ask)) != texts(server.complete(**{**ask, "seed": 2**63 - 1}))


def test_the_choices_of_one_seed_differ_at_its_very_end(server: Running) -> None:
    assert len(set(texts(server.complete(prompt="once", max_tokens=12, seed=2**63 - 1, n=3)))) == 3


def test_best_of_returns_the_most_probable(server: Running) -> None:
    ask = {"prompt": "best", "max_tokens": 6, "seed": 3, "logprobs": 0}
    every = choices(server.complete(**ask, n=8))
    mean = {choice["text"]: sum(choice["logprobs"]["token_logprobs"]) / 6 for choice in every}
    best = server.complete(**ask, n=3, best_of=8)
    assert texts(best) == sorted(mean, key=mean.__getitem__, reverse=True)[:3]
    assert best["usage"]["completion_tokens"] == 48
    plain = server.complete(**{**ask, "logprobs": None}, n=3, best_of=8)
    assert texts(plain) == texts(best)
    assert choices(plain)[0]["logprobs"] is None


def test_a_stop_string_ends_the_text(server: Running) -> None:
    ask = {"prompt": "go", "max_tokens": 24, "seed": 5, "logit_bias": {str(byte): 20 for byte in b"abc"}}
    full = texts(server.complete(**ask))[0]
    stop = full[3:5]
    ended = server.complete(**ask, stop=[stop, "never"])
    assert texts(ended) == [full[: full.index(stop)]]
    assert (choices(ended)[0]["finish_reason"], choices(ended)[0]["stop_reason"]) == ("stop", stop)
    kept = server.complete(**ask, stop=stop, include_stop_str_in_output=True)
    assert texts(kept) == [full[: full.index(stop) + 2]]
    assert kept["usage"]["completion_tokens"] == full.index(stop) + 2


def test_a_stop_token_ends_the_text(server: Running) -> None:
    ask = {"prompt": "go", "max_tokens": 24, "seed": 5, "logit_bias": {str(byte): 20 for byte in b"abc"}}
    full = texts(server.complete(**ask))[0]
    ended = server.complete(**ask, stop_token_ids=[ord(full[4])], return_token_ids=True)
    assert texts(ended) == [full[: full.index(full[4])]]
    assert choices(ended)[0]["stop_reason"] == ord(full[4])
    assert choices(ended)[0]["token_ids"][-1] == ord(full[4])


def test_end_of_text_ends_unless_ignored(server: Running) -> None:
    ask = {"prompt": "end", "max_tokens": 5, "logit_bias": {str(END_OF_TEXT): 100}, "return_token_ids": True}
    ended = server.complete(**ask)
    assert (texts(ended), choices(ended)[0]["finish_reason"]) == ([""], "stop")
    assert choices(ended)[0]["token_ids"] == [END_OF_TEXT]
    assert ended["usage"]["completion_tokens"] == 1
    later = server.complete(**ask, min_tokens=3)
    assert choices(later)[0]["token_ids"][3] == END_OF_TEXT
    on = server.complete(**ask, ignore_eos=True)
    assert choices(on)[0]["token_ids"] == [END_OF_TEXT] * 5
    assert texts(on) == ["<|endoftext|>" * 5]


@pytest.mark.parametrize("field", [{"top_k": 1}, {"top_k": -1, "temperature": 0}, {"top_p": 1e-9}, {"min_p": 1.0}])
def test_samplers_of_one_token_are_greedy(server: Running, field: Json) -> None:
    assert texts(server.complete(prompt="a", max_tokens=6, **field)) == texts(
        server.complete(prompt="a", max_tokens=6, temperature=0)
    )


@pytest.mark.parametrize("field", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_penalties_reach_the_engine(server: Running, field: str) -> None:
    ask = {"prompt": "aaaa", "max_tokens": 16, "temperature": 0, "logit_bias": {"97": 12}}
    assert set(texts(server.complete(**ask))[0]) == {"a"}
    assert set(texts(server.complete(**{**ask, "logit_bias": {"97": 1}}, **{field: 2}))[0]) != {"a"}


def test_fork_counts_follow_the_ratio(server: Running) -> None:
    ask = {"prompt": "forks of a river", "max_tokens": 8, "echo": True, "return_fork_counts": True, "temperature": 0}
    counts = {ratio: choices(server.complete(**ask, fork_ratio=ratio))[0]["fork_counts"] for ratio in (1, 2, 4)}
    assert counts[1] == [1] * 24
    assert counts[4] == [4] * 24
    assert 24 < sum(counts[2]) <= 48
    without_echo = choices(server.complete(**{**ask, "echo": False}, fork_ratio=2))[0]
    assert without_echo["fork_counts"] == counts[2][16:]


@pytest.mark.parametrize("rule", ["causal", "dynamic", "fixed"])
def test_every_rule_is_served(server: Running, rule: str) -> None:
    answer = server.complete(prompt="rule", max_tokens=5, fork_selection=rule, fork_ratio=4, temperature=0)
    assert texts(answer) == texts(server.complete(prompt="rule", max_tokens=5, fork_ratio=4, temperature=0))


def test_unknown_fields_are_named_and_otherwise_ignored(server: Running) -> None:
    body = {"prompt": "a", "max_tokens": 1, "do_sample": True, "x\r\nset-cookie: y": 1, "ü": None}
    response = server.client.post("/v1/completions", json=body)
    assert response.status_code == 200
    assert response.headers["x-ignored-parameters"] == "do_sample, x%0D%0Aset-cookie%3A%20y"
    assert "x-ignored-parameters" not in server.client.post("/v1/completions", json={"max_tokens": 1}).headers
    # A name may be empty, and the header is cut between two names: its value never ends in a space.
    for names, told in ((["x", ""], "x,"), (["y" * 999, "z"], "y" * 999 + ",")):
        response = server.client.post("/v1/completions", json={"max_tokens": 1, **dict.fromkeys(names, 1)})
        assert response.headers["x-ignored-parameters"] == told


def test_unknown_fields_of_objects_are_named(server: Running) -> None:
    body = {
        "max_tokens": 1,
        "fork_bias": [{"layer": 1, "position": 0}, {"layer": 1, "position": 1, "strength": 2}],
        "structured_outputs": {"whitespace_pattern": " "},
        "response_format": {"type": "json_schema", "json_schema": {"schema": {}, "version": 1}, "fork_bias": [1]},
    }
    response = server.client.post("/v1/completions", json=body)
    named = [unquote(name) for name in response.headers["x-ignored-parameters"].split(", ")]
    assert named == [
        "response_format.fork_bias",
        "response_format.json_schema.version",
        "structured_outputs.whitespace_pattern",
        "fork_bias[1].strength",
    ]


def test_the_whole_context_can_be_used(server: Running) -> None:
    answer = server.complete(prompt=[1] * 63, max_tokens=1)
    assert answer["usage"]["total_tokens"] == 64
