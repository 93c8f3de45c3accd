"""The native forward against the portable one: the same caches, chunk by chunk, in random mixes."""

import random
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import pytest
import torch

from tests.engine.conftest import MakeModel
from tests.engine.native.conftest import MakeForward
from tests.engine.test_oracle import SHAPES, TOLERANCE
from thoughtbubbles.engine.cache.fork_cache import ForkCache
from thoughtbubbles.engine.cache.fork_state import ForkState
from thoughtbubbles.engine.native.forward import Extended as NativeExtended
from thoughtbubbles.engine.portable.forward import CachedForward, Chunk, Extended, ForkTally
from thoughtbubbles.model import Selection, Thoughtbubbles

STEPS = 40
MORE_SHAPES = {
    "bfloat16 holds the weights, heads of 64": {"n_embd": 128, "n_head": 2},
    "heads of 4": {"n_embd": 24, "n_head": 6},
    "no biases of scores": {"score_bias": False, "value_attenuation": False},
    "no attenuation": {"residual_attenuation": False},
}


@dataclass
class Pair:
    """A request in both caches."""

    selection: Selection
    states: tuple[ForkState, ForkState]
    tokens: list[int] = field(default_factory=list)
    compared: int = 0


class Mix:
    """Random requests that come, grow by some tokens at a time, leave, and begin where others left off."""

    def __init__(self, model: Thoughtbubbles, make_native: MakeForward, seed: int, page_size: int = 4) -> None:
        self.model, self.dice = model, random.Random(seed)
        self.caches = [
            ForkCache(model.config, max_tokens=64, total_bytes=1 << 27, page_size=page_size,
                      like=model.transformer.wte.weight, requests=6)
            for _ in range(2)
        ]  # fmt: skip
        self.portable = CachedForward(model, self.caches[0], ForkTally())
        self.native = make_native(model, self.caches[1])
        self.pairs: list[Pair] = []
        self.compared = self.edges = 0

    def step(self) -> None:
        if len(self.pairs) < 6 and self.dice.random() < 0.5:
            self.open()
        if len(self.pairs) > 1 and self.dice.random() < 0.2:
            self.leave(self.pairs[self.dice.randrange(len(self.pairs))])
        growing = [pair for pair in self.pairs if self.dice.random() < 0.8 and len(pair.tokens) < 60]
        if growing:
            self.extend(growing)
        for cache in self.caches:
            cache.check_integrity()

    def open(self) -> None:
        ratio = self.dice.choice([None, 1.0, self.dice.uniform(1, self.model.config.max_ratio)])
        selection = Selection.of(self.model.config, "causal", ratio)
        begin = [self.dice.randrange(2)] * self.dice.randint(17, 40)  # many begin alike
        prefixes = [cache.find(selection, begin) for cache in self.caches]
        states = [cache.open(selection, prefix) for cache, prefix in zip(self.caches, prefixes, strict=True)]
        assert states[0].ids == states[1].ids
        pair = Pair(selection, (states[0], states[1]), states[0].ids, states[0].tokens)
        self.pairs.append(pair)
        if not pair.tokens:
            self.extend([pair], begin)

    def leave(self, pair: Pair) -> None:
        self.pairs.remove(pair)
        for cache, state in zip(self.caches, pair.states, strict=True):
            state.spoilt = self.edges > 0
            cache.close([state])

    def extend(self, pairs: list[Pair], ids: list[int] | None = None) -> None:
        chunks: list[list[Chunk]] = [[], []]
        one = self.dice.random() < 0.6
        for pair in pairs:
            size = 1 if one else min(self.dice.randint(1, 20), 62 - len(pair.tokens))
            new = ids or [self.dice.randrange(256)] * size if self.dice.random() < 0.2 else ids or [
                self.dice.randrange(256) for _ in range(size)]  # fmt: skip
            for own, state in zip(chunks, pair.states, strict=True):
                own.append(Chunk(new, state, pair.selection))
            pair.tokens = [*pair.tokens, *new]
        with torch.inference_mode():
            wanted, given = self.portable.extend(chunks[0]), self.native.extend(chunks[1])
        self.compare(pairs, wanted, given)

    def compare(self, pairs: list[Pair], wanted: Extended, given: NativeExtended) -> None:
        log_p = [each.logits.log_softmax(1) for each in (given, wanted)]
        bounds = list(accumulate((0, *(len(pair.tokens) - pair.compared for pair in pairs))))
        ends = [np.append(0, each.counts.cumsum()) for each in (given, wanted)]
        for i, pair in enumerate(pairs):
            self.compared += 1
            if self.on_edge(pair):
                self.edges += 1
                self.leave(pair)
                continue
            tokens, pair.compared = slice(*bounds[i : i + 2]), len(pair.tokens)
            assert given.counts[tokens].tolist() == wanted.counts[tokens].tolist()
            torch.testing.assert_close(log_p[0][i], log_p[1][i], atol=TOLERANCE, rtol=0)
            x = [each.streams.x[0, end[tokens.start] : end[tokens.stop]]
                 for each, end in zip((given, wanted), ends, strict=True)]  # fmt: skip
            torch.testing.assert_close(*x, atol=TOLERANCE, rtol=TOLERANCE)

    def on_edge(self, pair: Pair) -> bool:
        """Whether other streams survive because a score is on the edge of the grid: its last bit decides (SPEC.md)."""
        portable, native = pair.states
        assert native.ids == portable.ids
        near = False
        for i in range(len(self.caches[0].segments)):
            ends = [state.ledger.ends[state.row, i, : state.tokens] for state in pair.states]
            if ends[0].tolist() != ends[1].tolist():
                assert near, "other streams survive, and no score is on an edge"
                return True
            if i + 1 < len(self.caches[0].segments):
                pages = [cache.segments[i] for cache in self.caches]
                scores = [each.read_scores(each.slots(state.pages(i), state.streams(i))).long()
                          for each, state in zip(pages, pair.states, strict=True)]  # fmt: skip
                off = int((scores[0] - scores[1]).abs().max())
                assert off <= 1
                near |= off > 0
        return False

    def compare_tallies(self) -> None:
        for name in ("forks", "deletions"):
            wanted, given = (+getattr(each.tally, name) for each in (self.portable, self.native))
            assert self.edges or given == wanted


@pytest.mark.numeric
@pytest.mark.sample(20)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [*SHAPES, *MORE_SHAPES])
def test_random_mixes(shape: str, seed: int, make_model: MakeModel, make_native: MakeForward) -> None:
    model = make_model(**{**SHAPES, **MORE_SHAPES}[shape])
    if "bfloat16" in shape:
        model = model.bfloat16().float()
    mix = Mix(model, make_native, seed)
    for _ in range(STEPS):
        mix.step()
    mix.compare_tallies()
    assert mix.edges <= 0.05 * mix.compared + 1


@pytest.mark.numeric
@pytest.mark.parametrize("shape", ["three forks", "mixture of softmaxes", "padded vocabulary"])
@torch.inference_mode()
def test_logits_in_the_place_of_each_guess(shape: str, make_model: MakeModel, make_native: MakeForward) -> None:
    """They are those of a step for each token."""
    model = make_model(**SHAPES[shape])
    caches = [ForkCache(model.config, max_tokens=64, total_bytes=1 << 24, page_size=4,
                        like=model.transformer.wte.weight) for _ in range(3)]  # fmt: skip
    native, portable = make_native(model, caches[0]), CachedForward(model, caches[1], ForkTally())
    alone, selection = make_native(model, caches[2]), Selection.of(model.config, "causal")
    states = [[cache.open(selection) for cache in caches] for _ in range(3)]
    chunks: list[list[Chunk]] = [[], [], []]
    ids, guesses = [[5, 6, 7, 8, 9], [3], [4, 4, 4]], [3, 0, 2]
    for own, new, number in zip(states, ids, guesses, strict=True):
        for chunk, state in zip(chunks, own, strict=True):
            chunk.append(Chunk(new, state, selection, guesses=number))
    given, wanted = native.extend(chunks[0]), portable.extend(chunks[1])
    assert given.logits.shape == wanted.logits.shape == (8, model.config.vocab_size)
    torch.testing.assert_close(given.logits.log_softmax(1), wanted.logits.log_softmax(1), atol=TOLERANCE, rtol=0)
    row = 0
    for chunk in chunks[2]:
        for at in range(len(chunk.ids)):
            step = alone.extend([Chunk([chunk.ids[at]], chunk.state, selection)])
            if at >= len(chunk.ids) - 1 - chunk.guesses:
                torch.testing.assert_close(given.logits[row].log_softmax(0), step.logits[0].log_softmax(0),
                                           atol=TOLERANCE, rtol=0)  # fmt: skip
                row += 1
