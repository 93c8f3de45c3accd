"""The numbers that `benchmarks.server.streaming` prints, and the requests that it sends."""

import pytest
import torch

from benchmarks.server.alone import complete_alone
from benchmarks.server.clients import Answer
from benchmarks.server.streaming import NEW, Requests, numbers
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.model import ModelConfig, Thoughtbubbles, Tokenizer


def test_the_numbers_of_answers() -> None:
    """Two answers of four tokens, one of them in two events."""
    answers = [
        Answer(outcome="200", sent=10.0, arrivals=[11.0, 11.5, 12.0, 13.0], tokens=4),
        Answer(outcome="200", sent=10.5, arrivals=[12.5, 14.0], tokens=4),
    ]
    rate, first, slowest_first, gap, longest_gap, tokens = numbers(answers)
    assert (rate, first, slowest_first) == (8 / 4, 2.0, 2.0)
    assert (gap, longest_gap) == (1.0, 1.5)
    assert tokens == pytest.approx(8 / 6)


def test_seeds_differ_in_prompts_but_not_in_their_lengths() -> None:
    prompts = [
        [Requests(load="greedy", clients=4, requests=2, seed=seed).prompt(client, 1) for client in range(4)]
        for seed in range(2)
    ]
    assert [len(each) for each in prompts[0]] == [len(each) for each in prompts[1]]
    assert all(one != other for one, other in zip(*prompts, strict=True))
    body = Requests(load="greedy", clients=4, requests=2, seed=0).request("name", 3, 1).body
    assert body is not None
    assert (body["model"], body["prompt"], body["max_tokens"]) == ("name", prompts[0][3], NEW)


def test_clients_of_the_engine_alone_send_one_request_after_the_other() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=257, block_size=32, max_block_size=64, n_layer=2, n_head=1, n_embd=8, fork_layers=(1,)
    )
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, "bytes")
    engine = Engine(Thoughtbubbles(config), tokenizer, EngineConfig(executor="portable", cache_bytes=1 << 20))
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    answers = complete_alone(engine, lambda client, number: ([client, number], params), clients=2, requests=2)
    assert [each.tokens for each in answers] == [3] * 4
    one, other, *later = sorted(answers, key=lambda each: each.sent)
    assert all(each.sent >= min(one.arrivals[-1], other.arrivals[-1]) for each in later)
