"""The library draws what the host draws, for every mix of what a request may ask for, and leaves it little to draw."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.engine.conftest import MakeModel
from tests.engine.draws import EXTREME_BITS, Words, assert_alike, request, seed_of, some_logits, some_request
from tests.engine.native.conftest import MakeForward
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.native.sampler import NativeSampler
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.sampler import Drawn, Sampler
from thoughtbubbles.model import Selection, Tokenizer

ROWS = 8


class Both:
    """A native sampler for logits with `padded` columns, of which `vocabulary` may be drawn, and the host's."""

    def __init__(self, make_model: MakeModel, make_native: MakeForward, vocabulary: int, padded: int) -> None:
        model = make_model(vocab_size=padded, n_layer=1, fork_layers=())
        self.cache = ForkCache(model.config, max_tokens=64, total_bytes=1 << 22, page_size=4,
                               like=model.transformer.wte.weight, requests=ROWS)  # fmt: skip
        self.host, self.selection = Counted(Words(vocabulary)), Selection.of(model.config, "causal")  # type: ignore[arg-type]
        self.native = NativeSampler(make_native(model, self.cache), self.cache.ledger, self.host)
        self.drawn = 0

    def start(self, requests: Sequence[Request]) -> None:
        for one in requests:
            one.state = self.cache.open(self.selection)

    def end(self, requests: Sequence[Request]) -> None:
        for one in requests:
            assert one.state
            self.cache.ledger.tokens[one.state.row] = 0
            self.cache.close([one.state])

    def compute(self, requests: Sequence[Request]) -> None:
        """Have the ledger list their tokens."""
        for one in requests:
            assert one.state
            ids = [*one.tokens, *one.draft]
            self.cache.ledger.ids[one.state.row, : len(ids)] = ids
            self.cache.ledger.tokens[one.state.row] = len(ids)

    def draw(self, requests: Sequence[Request], logits: Tensor, guessed: Sequence[int] = ()) -> Drawn:
        """Draw on both, and assert that they agree."""
        guessed = guessed or [0] * len(requests)
        self.compute(requests)
        given = self.native.draw(requests, logits, guessed)
        left = self.host.rows
        wanted = self.host.draw(requests, logits, guessed)
        self.host.rows, self.drawn = left, self.drawn + len(requests)
        assert given.tokens == wanted.tokens
        assert given.finite == wanted.finite
        assert_alike(given.logprobs, wanted.logprobs)
        return given


class Counted(Sampler):
    """Counts the rows that it draws."""

    rows = 0

    def draw(self, requests: Sequence[Request], logits: Tensor, guessed: Sequence[int] = ()) -> Drawn:
        self.rows += len(requests)
        return super().draw(requests, logits, guessed)


MakeBoth = Callable[[int, int], Both]


@pytest.fixture
def make_both(make_model: MakeModel, make_native: MakeForward) -> MakeBoth:
    return lambda vocabulary, padded: Both(make_model, make_native, vocabulary, padded)


@dataclass
class Mask:
    """A grammar that forbids some tokens of the next one, or that has failed."""

    forbidden: Tensor
    failure: str | None = None


def draw_some(both: Both, dice: random.Random, tokenizer: Tokenizer, vocabulary: int, padded: int) -> None:
    """Draw two tokens of a few requests, one after the other."""
    requests = [some_request(dice, tokenizer, dice.getrandbits(60), vocabulary) for _ in range(dice.randint(1, ROWS))]
    both.start(requests)
    for _ in range(2):
        logits = some_logits(dice, len(requests), padded, vocabulary).float()
        drawn = both.draw(requests, logits)
        for one, token in zip(requests, drawn.tokens, strict=True):
            assert token is not None
            one.output.append(token)
    both.end(requests)


@pytest.mark.numeric
@pytest.mark.sample(8)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("vocabulary", "padded"), [(23, 23), (257, 262), (1500, 2524), (4099, 4099)])
def test_any_mix_draws_as_the_host(
    vocabulary: int, padded: int, seed: int, make_both: MakeBoth, tokenizer: Tokenizer
) -> None:
    dice, both = random.Random(seed), make_both(vocabulary, padded)
    torch.manual_seed(seed)
    for _ in range(30):
        draw_some(both, dice, tokenizer, vocabulary, padded)
    # Likeliest tokens that tie at a temperature of 1e-5 have nothing but the sum's rounding between them.
    assert both.host.rows < 0.1 * both.drawn


@pytest.mark.numeric
@pytest.mark.sample(2)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("vocabulary", "rounds"), [(8192, 100), (50_257, 25)])
def test_a_vocabulary_of_the_usual_size(
    vocabulary: int, rounds: int, seed: int, make_both: MakeBoth, tokenizer: Tokenizer
) -> None:
    """And of ordinary requests the library leaves next to none to the host."""
    dice, both = random.Random(seed), make_both(vocabulary, vocabulary + 47)
    torch.manual_seed(seed)
    for _ in range(rounds):
        requests = [
            request(
                tokenizer, dice.getrandbits(60), tuple(dice.randrange(vocabulary) for _ in range(5)),
                temperature=dice.choice([0, 0.5, 0.8, 1, 1.5]), top_k=dice.choice([0, 0, 1, 40, 1000]),
                top_p=dice.choice([1, 0.5, 0.9, 0.999]), min_p=dice.choice([0, 0, 0.05]),
                presence_penalty=dice.choice([0, 0.5]), repetition_penalty=dice.choice([1, 1, 1.2]),
                min_tokens=dice.choice([0, 9]), logprobs=dice.choice([None, 0, 20]),
            )
            for _ in range(ROWS)
        ]  # fmt: skip
        both.start(requests)
        both.draw(requests, dice.choice([1, 2, 4]) * torch.randn(ROWS, vocabulary + 47))
        both.end(requests)
    assert both.host.rows <= 0.01 * both.drawn


@pytest.mark.sample(6)
@pytest.mark.parametrize("top_k", [0, 1, 6, 31, 40, 49, 50, 51])
@pytest.mark.parametrize("top_p", [1e-46, 0.2, 0.6, 1 - 2**-24, 1.0])
def test_what_equals_the_threshold_stays(top_k: int, top_p: float, make_both: MakeBoth, tokenizer: Tokenizer) -> None:
    """Each of ten values is there five times."""
    both, logits = make_both(50, 50), (torch.arange(50) % 10 / 10).expand(ROWS, -1).contiguous()
    for first in range(0, 80, ROWS):
        requests = [request(tokenizer, first + i, top_k=top_k, top_p=top_p) for i in range(ROWS)]
        both.start(requests)
        drawn = both.draw(requests, logits)
        if 0 < top_k < 6 or top_p < 0.01:
            assert {token % 10 for token in drawn.tokens if token is not None} == {9}
        both.end(requests)


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0}, {"temperature": 1e-38}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1},
     {"repetition_penalty": 1.5}, {"temperature": 0, "logit_bias": {3: 1}}, {"logprobs": 3}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30, -math.inf])
@pytest.mark.sample(12)
def test_rows_that_are_not_finite_draw_nothing(
    settings: dict[str, object], value: float, make_both: MakeBoth, tokenizer: Tokenizer
) -> None:
    """One such logit anywhere, or nothing but -inf; the others draw what they draw alone."""
    both, requests = make_both(1500, 1507), [request(tokenizer, seed, **settings) for seed in range(4)]
    both.start(requests)
    logits = torch.randn(4, 1507)
    alone = both.draw(requests, logits).tokens
    logits[1, 1100], logits[2, 1506], logits[3] = value, value, -math.inf
    drawn = both.draw(requests, logits)
    assert drawn.finite == [True, value == -math.inf, value == -math.inf, False]
    assert drawn.tokens[0] == alone[0]


@pytest.mark.parametrize("bits", EXTREME_BITS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"top_k": 3}, {"top_p": 0.05}, {"min_p": 0.9}, {"temperature": 0}, {"logit_bias": {123: -100}},
     {"temperature": 1e-5}, {"temperature": 2.0}],
    ids=str,
)  # fmt: skip
@pytest.mark.sample(12)
def test_extreme_hashes(settings: dict[str, object], bits: int, make_both: MakeBoth, tokenizer: Tokenizer) -> None:
    """Of a token that is likely, of one that is not, and of one that is impossible."""
    both = make_both(300, 300)
    logits = torch.randn(300, generator=torch.Generator().manual_seed(1)).repeat(3, 1)
    logits[0, 123], logits[1, 123], logits[2, 123] = 3.0, -1.0, -math.inf
    requests = [request(tokenizer, seed_of(bits, 2, 123), (1,), **settings) for _ in range(3)]
    for one in requests:
        one.output += [7, 9]
    both.start(requests)
    assert both.draw(requests, logits).tokens[2] != 123


def test_each_guess_of_a_draft_counts(make_both: MakeBoth, tokenizer: Tokenizer) -> None:
    """Penalties, position and min_tokens are those after the guesses before."""
    both = make_both(50, 50)
    settings = {"temperature": 0.7, "frequency_penalty": 1.5, "repetition_penalty": 1.3, "min_tokens": 4}
    one, other = (request(tokenizer, seed, (3, 4), stop_token_ids=(5, 6), **settings) for seed in (1, 2))
    one.output += [5, 7]
    one.draft = [7, 7, 8]
    both.start([one, other])
    rows = [one] * 4 + [other]
    for _ in range(20):
        both.draw(rows * 3, torch.randn(15, 50), [0, 1, 2, 3, 0] * 3)  # more rows than requests may run


@pytest.mark.parametrize("temperature", [0, 1])
def test_grammars(temperature: float, make_both: MakeBoth, tokenizer: Tokenizer) -> None:
    """A mask leaves out tokens, also where `min_tokens` bans all that it leaves; one that has failed draws nothing."""
    both, allowed = make_both(300, 305), [[4], [0, 9], [0], [0], [9], []]
    requests = [
        request(tokenizer, 3 + i, temperature=temperature, min_tokens=5, stop_token_ids=(9,), top_p=0.9)
        for i in range(len(allowed) + 1)
    ]
    for one, ids in zip(requests, allowed, strict=False):
        one.grammar = Mask(torch.ones(300, dtype=torch.bool).index_fill(0, torch.tensor(ids).long(), False),
                           failure=None if ids else "too complex")  # type: ignore[assignment]  # fmt: skip
    both.start(requests)
    drawn = both.draw(requests, torch.randn(len(requests), 305))
    assert all(drawn.finite)
    assert drawn.tokens[0] == 4
    assert drawn.tokens[1] in {0, 9}
    assert drawn.tokens[2:6] == [0, 0, 9, None]


def test_a_row_whose_tokens_are_all_banned_is_the_hosts(make_both: MakeBoth, tokenizer: Tokenizer) -> None:
    both, one = make_both(30, 33), request(tokenizer, min_tokens=2, stop_token_ids=tuple(range(30)))
    both.start([one])
    both.compute([one])
    for sampler in (both.host, both.native):
        with pytest.raises(AssertionError, match="finite"):
            sampler.draw([one], torch.randn(1, 33), [0])


def test_a_row_of_the_ledger_that_another_request_gets(make_both: MakeBoth, tokenizer: Tokenizer) -> None:
    both = make_both(30, 30)
    for settings in ({"logit_bias": {4: 9}, "repetition_penalty": 3}, {}, {"temperature": 0}, {"min_tokens": 3}):
        one = request(tokenizer, 5, (1, 2), **settings)
        both.start([one])
        assert one.state
        assert one.state.row == both.cache.ledger.generation.argmax()
        for _ in range(10):
            both.draw([one], torch.rand(1, 30))
        both.end([one])


@pytest.mark.numeric
def test_threads_draw_the_same(make_both: MakeBoth, tokenizer: Tokenizer) -> None:
    both, dice = make_both(1500, 1500), random.Random(0)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for _ in range(20):
            draw_some(both, dice, tokenizer, 1500, 1500)
    finally:
        torch.set_num_threads(before)
