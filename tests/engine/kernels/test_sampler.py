"""The device draws what the host draws, for every mix of what a request may ask for."""

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.engine.draws import END, Words, assert_alike, request, some_logits, some_request
from tests.engine.kernels.conftest import DEVICE
from thoughtbubbles.engine.prompt_report import Scored
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.sampler import Sampler
from thoughtbubbles.engine.sampling import weigh
from thoughtbubbles.model import Tokenizer

ON_GPU = DEVICE.type == "cuda"


class Device:
    """Lanes for requests, in an order that is not the batch's, and a sampler."""

    def __init__(self, requests: list[Request], vocabulary: int, padded: int) -> None:
        from thoughtbubbles.engine.cuda.sampler import DeviceSampler

        self.requests, slots = requests, len(requests) + 1  # the first is empty
        self.generations = np.ones(slots, np.int64)
        self.rows = np.array(random.Random(0).sample(range(slots), len(requests)))
        self.sampler = DeviceSampler(self.generations, batch_size=slots, vocabulary=vocabulary, model_vocabulary=padded,
                                     end_of_text=END, device=DEVICE)  # fmt: skip
        self.sampler.state.marks.fill_(7)  # of requests that had the lanes before
        self.sampler.state.bias.fill_(7)
        self.lane = torch.tensor([-1, *self.rows.tolist()], dtype=torch.int32, device=DEVICE)
        self.token = torch.full((slots,), -5, dtype=torch.int32, device=DEVICE)
        self.sampler.assign(self.rows, requests)

    def draw(self, logits: Tensor) -> list[int]:
        rows = torch.cat((torch.full_like(logits[:1], math.nan), logits)).to(DEVICE)
        self.sampler.draw(rows, self.lane, self.token, plain=False)
        first, *tokens = self.token.tolist()
        assert first == -5, "a slot without a lane draws nothing"
        assert [max(token, 0) for token in tokens] == self.sampler.state.token[self.rows].tolist()
        return tokens

    def scored(self) -> list[Scored | None]:
        from thoughtbubbles.engine.cuda.sampler import scored

        tops = [request.params.logprobs for request in self.requests]
        return scored(self.sampler.report[1:].cpu(), tops, self.sampler.vocabulary)


def check(requests: list[Request], rows: list[Tensor], vocabulary: int) -> None:
    """Draw some tokens of each, one after the other, on both."""
    device, host = Device(requests, vocabulary, rows[0].shape[1]), Sampler(Words(vocabulary))  # type: ignore[arg-type]
    for logits in rows:
        wanted = host.draw(requests, logits)
        assert device.draw(logits) == wanted.tokens
        assert_alike(device.scored(), wanted.logprobs)
        for one, token in zip(requests, wanted.tokens, strict=True):
            assert token is not None
            one.output.append(token)


@pytest.mark.sample(6)
@pytest.mark.parametrize("seed", range(300 if ON_GPU else 40))
def test_any_mix_draws_as_the_host(seed: int, tokenizer: Tokenizer) -> None:
    dice = random.Random(seed)
    torch.manual_seed(seed)
    vocabulary = dice.choice([23, 257, 1500, 2100, 4099])
    requests = [some_request(dice, tokenizer, dice.getrandbits(60), vocabulary) for _ in range(dice.randrange(1, 7))]
    padded = vocabulary + dice.choice([0, 5, 1024])
    check(requests, [some_logits(dice, len(requests), padded, vocabulary) for _ in range(2)], vocabulary)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "settings",
    [{"top_p": 0.9}, {"top_k": 50}, {"top_k": 50, "top_p": 0.9, "min_p": 0.01}, {"top_k": 7, "top_p": 0.9},
     {"repetition_penalty": 1.2, "logprobs": 5},
     {"top_p": 0.5, "presence_penalty": 1, "logit_bias": {8191: 4}}, {"temperature": 0, "logprobs": 20}, {}],
)  # fmt: skip
def test_a_vocabulary_of_the_usual_size(settings: dict[str, object], tokenizer: Tokenizer) -> None:
    requests = [request(tokenizer, 5, (1, 2, 3), **settings), request(tokenizer, 6, temperature=0.8)]
    check(requests, [2 * torch.randn(2, 8192)], 8192)


@pytest.mark.sample(2)
@pytest.mark.parametrize("settings", [{"top_k": 70}, {"top_p": 0.4}, {"top_k": 8999, "top_p": 0.4}])
@pytest.mark.parametrize("above", [0, 40])
def test_more_equal_logits_than_there_is_room_for(
    settings: dict[str, object], above: int, tokenizer: Tokenizer
) -> None:
    """All of 8,960 are in one bin: the whole row is added up."""
    logits = torch.full((1, 9000), -1.0)
    logits[0, 100 : 100 + above] = 2.0
    check([request(tokenizer, 3, **settings)], [logits], 9000)


@pytest.mark.sample(3)
@pytest.mark.parametrize("top_k", [1, 6, 31, 40])
@pytest.mark.parametrize("top_p", [0.2, 0.6, 1.0])
def test_what_equals_the_threshold_stays(top_k: int, top_p: float, tokenizer: Tokenizer) -> None:
    """Each of ten values is there five times."""
    seeds = range(200 if ON_GPU else 10)
    logits = (torch.arange(50) % 10 / 10).expand(len(seeds), -1).clone()
    requests = [request(tokenizer, seed, top_k=top_k, top_p=top_p) for seed in seeds]
    drawn = Device(requests, 50, 50).draw(logits)
    assert drawn == Sampler(Words(50)).draw(requests, logits).tokens  # type: ignore[arg-type]
    if top_k < 6:
        assert {token % 10 for token in drawn} == {9}


@pytest.mark.parametrize(
    "settings",
    [{}, {"top_k": 5}, {"top_p": 0.5}, {"top_k": 9, "top_p": 0.5}, {"min_p": 0.1}, {"repetition_penalty": 1.5},
     {"temperature": 0, "logit_bias": {3: 1}}, {"logprobs": 3}],
)  # fmt: skip
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.sample(6)
def test_rows_that_are_not_finite_draw_nothing(settings: dict[str, object], value: float, tokenizer: Tokenizer) -> None:
    """And the others what they draw alone; beyond the vocabulary a row may hold anything."""
    requests = [request(tokenizer, seed, **settings) for seed in range(4)]
    logits = torch.randn(4, 1508)
    logits[:, 1500:] = math.nan
    wanted = Device(requests, 1500, 1508).draw(logits)
    assert min(wanted) >= 0
    logits[1, 1100], logits[3, :1500] = value, -math.inf
    assert Device(requests, 1500, 1508).draw(logits) == [wanted[0], -1, wanted[2], -1]


def test_a_lane_that_another_request_gets_has_nothing_of_the_one_before(tokenizer: Tokenizer) -> None:
    greedy = request(tokenizer, temperature=0, repetition_penalty=3, logit_bias={4: 2})
    device, logits = Device([greedy], 30, 30), torch.rand(1, 30)
    for _ in range(3):
        device.draw(logits)
    other = request(tokenizer, temperature=0, logprobs=0)
    device.sampler.assign(device.rows, [other])
    assert device.draw(logits) != [int(logits.argmax())], "the lane is still the first request's"
    device.generations[device.rows] = 2
    device.sampler.assign(device.rows, [other])
    assert device.draw(logits) == [int(logits.argmax())]


def test_weights_are_the_hosts_to_the_last_bit() -> None:
    from tests.engine.kernels.weights import weights

    spread = torch.cat([torch.randn(50_000) * 10**n for n in range(-6, 7)])
    x = torch.cat((3.25 - spread.abs(), 3.25 - 50 * torch.rand(200_000), torch.tensor([3.25, -torch.inf, -1e38])))
    assert torch.equal(weights(x.to(DEVICE), 3.25).cpu(), weigh(x, torch.tensor(3.25)))
