"""`dynamic` and `fixed` recompute only what a token changed, and give what recomputing everything gives."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.engine.dynamic import Counting
from tests.engine.conftest import MakeModel
from tests.model.test_conformance import CASES, FLOAT32_TOLERANCE, needs_cases
from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams
from thoughtbubbles.engine.detokenizer import Detokenizer
from thoughtbubbles.engine.portable.layers import PackedModel
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.revising.forward import Revised, RevisingForward
from thoughtbubbles.engine.revising.layers import PackedLayers
from thoughtbubbles.engine.revising.pieces import Pieces, completed
from thoughtbubbles.engine.revising.recompute import Recompute
from thoughtbubbles.engine.revising.state import RevisableState
from thoughtbubbles.model import Fork, ModelConfig, Selection, Thoughtbubbles, Tokenizer
from thoughtbubbles.model.generate import generate
from thoughtbubbles.model.selection import GRID

TOLERANCE = 3e-5
"""Of a logit, a sum of 32 products in float32: it errs by 32 * 2**-24 * sum(|x * w|) at most, with |x| near 1 and |w|
near 0.5. What two orders of it differ by depends on the processor: up to 6e-6 with SSE4."""
SHAPES: dict[str, dict[str, object]] = {
    "three forks": {},
    "layer 0 forks": {"fork_layers": (0, 3)},
    "forks in a row, no bias": {"fork_layers": (1, 2, 3), "bias": False},
    "every layer forks": {"fork_layers": (0, 1, 2, 3, 4)},
    "mixture of softmaxes, odd budget": {"averaging": "logit", "block_size": 48, "max_block_size": 71},
    "rightmost": {"averaging": "rightmost"},
    "regular": {"fork_layers": (), "max_block_size": 64},
    "copy-3": {"fork_layers": (), "max_block_size": 64, "copies": 3, "averaging": "rightmost"},
}
LONGEST = 40


def layers_of(packed: PackedModel) -> PackedLayers:
    return PackedLayers(lambda: packed)


@dataclass
class Followed:
    """A sequence that grows, its state, and whether rounding noise made it another than the oracle's."""

    ids: list[int]
    state: RevisableState
    length: int = 0
    astray: bool = False

    @property
    def present(self) -> list[int]:
        return self.ids[: self.length]

    def check(self, model: Thoughtbubbles, revised: Revised) -> None:
        """Against the naive forward of the whole sequence."""
        streams, forks = model.streams(torch.tensor([self.present]), self.state.selection)
        self.astray = self.astray or differ_on_an_edge(self.state, forks)
        if not self.astray:
            torch.testing.assert_close(revised.logits, model.readout(streams)[0, -1], atol=TOLERANCE, rtol=0)
            counts = streams.token_index[0].bincount().tolist()
            assert counts[len(counts) - len(revised.fork_counts) :] == revised.fork_counts
            assert revised.streams == sum(counts)


def differ_on_an_edge(state: RevisableState, forks: list[Fork]) -> bool:
    """Whether a choice differs, and only among scores that are one step of the grid apart: any other fails."""
    for segment, fork in zip(state.segments[1:], forks, strict=True):
        odd = set(segment.candidate[0].tolist()) ^ set(fork.candidate[0].tolist())
        if odd:
            scores = fork.candidate_scores[0, sorted(odd)] * GRID
            assert scores.max() - scores.min() < 1.1, "these scores are no tie"
            return True
        assert torch.equal(segment.token_index, fork.token_index)
    return False


def sequences(model: Thoughtbubbles, dice: random.Random) -> list[Followed]:
    """Under every rule and ratio one that never repeats itself and one that ties."""
    followed = []
    for rule, ratio in product(("dynamic", "fixed"), (1, 1.5, 2, 4, 8)):
        unlike = [dice.randrange(256) for _ in range(LONGEST)]
        alike = dice.choice([[7] * LONGEST, [1, 2, 3, 4] * (LONGEST // 4), [dice.randrange(4) for _ in range(LONGEST)]])
        for ids in (unlike, alike):
            selection = Selection.of(model.config, rule, ratio)  # type: ignore[arg-type]
            state = RevisableState(model.config, selection, LONGEST, model.transformer.wte.weight)
            followed.append(Followed(ids, state))
    return followed


@pytest.mark.numeric
@pytest.mark.sample(2)
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_growing_sequences_are_the_whole_forwards(shape: str, make_model: MakeModel) -> None:
    """Rules, ratios and lengths share batches; at times a sequence grows by more than one token."""
    model, dice = make_model(**SHAPES[shape]), random.Random(shape)
    forward, waiting = RevisingForward(model, layers_of(PackedModel(model))), sequences(model, dice)
    dice.shuffle(waiting)
    batch: list[Followed] = []
    astray = 0
    while waiting or batch:
        while waiting and len(batch) < 5:
            batch.append(waiting.pop())
        for it in batch:
            it.length = min(LONGEST, it.length + dice.choice([1, 1, 1, 2, 9]))
        together = forward.extend([it.state for it in batch], [it.present for it in batch])
        for it, revised in zip(batch, together, strict=True):
            it.check(model, revised)
        astray += sum(it.astray for it in batch if it.length == LONGEST)
        batch = [it for it in batch if it.length < LONGEST]
    assert astray <= 2, "of twenty"


def is_served(case: Any) -> bool:  # noqa: ANN401  (a pytest.param)
    """Whether a conformance case is of a rule that revises."""
    return case.values[1]["rule"] in ("dynamic", "fixed")


@pytest.mark.numeric
@needs_cases
@pytest.mark.sample(8)
@pytest.mark.parametrize(("folder", "case"), list(filter(is_served, CASES)) or [(None, None)])
@torch.inference_mode()
def test_token_by_token_to_the_independent_implementations_numbers(folder: Path, case: dict[str, Any]) -> None:
    model = Thoughtbubbles(ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))).eval()
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    wanted = load_file(folder / "cases.safetensors")
    name, ratio = case["case"], case["max_block_size"] / model.config.block_size
    selection = Selection.of(model.config, case["rule"], ratio)
    ids = wanted[f"{name}.ids"][0].tolist()
    state = RevisableState(model.config, selection, len(ids), model.transformer.wte.weight)
    forward = RevisingForward(model, layers_of(PackedModel(model)))
    for length in range(1, len(ids) + 1):
        [revised] = forward.extend([state], [ids[:length]])
    for i, segment in enumerate(state.segments[1:]):
        assert torch.equal(segment.token_index, wanted[f"{name}.fork{i}.token_index"])
        torch.testing.assert_close(segment.score, wanted[f"{name}.fork{i}.score"], atol=FLOAT32_TOLERANCE, rtol=0)
    torch.testing.assert_close(revised.logits, wanted[f"{name}.logits.residual"][0, -1], atol=FLOAT32_TOLERANCE, rtol=0)


def grow(model: Thoughtbubbles, ratio: float, ids: list[int]) -> list[list[int]]:
    """The streams that each layer computed for each token of `ids`, the first apart."""
    state = RevisableState(
        model.config, Selection.of(model.config, "dynamic", ratio), len(ids), model.transformer.wte.weight
    )
    packed, given = Counting(model), []
    for length in range(1, len(ids) + 1):
        packed.rows = []
        RevisingForward(model, layers_of(packed)).extend([state], [ids[:length]])
        given.append(packed.rows)
    return given[1:]


@torch.inference_mode()
def test_where_every_candidate_survives_only_the_new_token_is_computed(model: Thoughtbubbles) -> None:
    """Forks stand before layers 1, 2 and 4."""
    for given in grow(model, 8, list(range(30))):
        assert given == [1, 2, 4, 4, 8]


@torch.inference_mode()
def test_layers_before_the_first_real_choice_compute_the_new_token_alone(model: Thoughtbubbles) -> None:
    given = grow(model, 2, list(range(30)))
    assert all(layers[:2] == [1, 2] for layers in given)
    last = [layers[-1] for layers in given]
    assert min(last) < 5 < max(last), "at times nothing but the new token changed, at times much"


@torch.inference_mode()
def test_what_is_kept_is_overwritten_in_place(model: Thoughtbubbles) -> None:
    state = RevisableState(model.config, Selection.of(model.config, "dynamic"), 30, model.transformer.wte.weight)

    def places() -> list[int]:
        buffers = [(s.keys, s.values, s.x, s.candidate_scores) for s in state.segments]
        return [each.data_ptr() for segment in buffers for each in segment]

    before, forward = places(), RevisingForward(model, layers_of(PackedModel(model)))
    for length in range(1, 31):
        forward.extend([state], [list(range(length))])
    assert places() == before


def make_request(name: str, tokens: int, model: Thoughtbubbles, tokenizer: Tokenizer) -> Request:
    selection = Selection.of(model.config, "dynamic")
    prompt = tuple(random.Random(name).randrange(256) for _ in range(tokens))
    return Request(name, prompt, SamplingParams(max_tokens=10), selection, 0, Detokenizer(tokenizer))


@pytest.mark.numeric
@torch.inference_mode()
def test_memory_is_bounded_and_given_back(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    """Memory for two of four states, and one for a moment: the others are computed whole until memory is free."""
    requests = [make_request(name, 9, model, tokenizer) for name in "abcd"]
    one = RevisableState(model.config, requests[0].selection, 19, model.transformer.wte.weight).nbytes
    recompute = Recompute(model, layers_of(PackedModel(model)), vocabulary=257, limit_bytes=3 * one)

    def step(requests: list[Request]) -> list[Revised]:
        revised = completed(recompute.step(requests))
        return [revised[request] for request in requests]

    def logits() -> Tensor:
        return torch.stack([each.logits for each in step(requests)])

    def oracle() -> Tensor:
        return torch.stack([model(torch.tensor([r.tokens]), rule="dynamic")[0, -1] for r in requests])

    for token in range(4):
        torch.testing.assert_close(logits(), oracle(), atol=TOLERANCE, rtol=0)
        assert recompute.kept_bytes == 2 * one
        for request in requests:
            request.output.append(token)
    computed = [len(each.fork_counts) for each in step(requests)]
    assert max(computed[:2]) < 13 == computed[2] == computed[3]
    requests = requests[1:]
    del request
    assert recompute.kept_bytes == one, "a request that is gone leaves nothing"
    requests[0].output.append(5)
    step(requests[:2])
    assert recompute.kept_bytes == 2 * one
    requests.clear()
    assert recompute.kept_bytes == 0


@torch.inference_mode()
def test_what_is_computed_whole_is_computed_one_after_the_other(
    model: Thoughtbubbles, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory for a state, no request keeps one while the next is computed."""
    pieces, states, alive = RevisingForward.pieces, WeakSet[RevisableState](), list[int]()

    def counting(
        self: RevisingForward, own: Sequence[RevisableState], ids: Sequence[Sequence[int]]
    ) -> Pieces[list[Revised]]:
        states.update(own)
        alive.append(len(states))
        return pieces(self, own, ids)

    monkeypatch.setattr(RevisingForward, "pieces", counting)
    recompute = Recompute(model, layers_of(PackedModel(model)), vocabulary=257, limit_bytes=0)
    completed(recompute.step([make_request(name, 9, model, tokenizer) for name in "abcd"]))
    assert alive == [1, 1, 1, 1]


@torch.inference_mode()
def test_states_never_take_more_than_the_limit(
    model: Thoughtbubbles, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are used for a moment count as well, also beside kept ones that came before."""
    sizes = [5, 9, 5, 30, 14, 5]
    requests = [make_request(str(i), tokens, model, tokenizer) for i, tokens in enumerate(sizes)]
    largest = RevisableState(model.config, requests[3].selection, 40, model.transformer.wte.weight).nbytes
    made, peak = WeakSet[RevisableState](), [0]
    init = RevisableState.__init__

    def recorded(self: RevisableState, *arguments: object) -> None:
        init(self, *arguments)  # type: ignore[arg-type]
        if self.segments[0].keys.device.type != "meta":
            made.add(self)
            peak[0] = max(peak[0], sum(state.nbytes for state in made))

    monkeypatch.setattr(RevisableState, "__init__", recorded)
    recompute = Recompute(model, layers_of(PackedModel(model)), vocabulary=257, limit_bytes=int(1.2 * largest))
    for those in (requests[:3], requests, requests[2:], requests[:5], requests):
        completed(recompute.step(those))
        completed(recompute.score(those[-1], 1))
        for request in those:
            request.output.append(7)
    assert 0 < recompute.kept_bytes <= peak[0] <= recompute.limit_bytes


def drain(engine: Engine) -> dict[str, list[int]]:
    told: dict[str, list[int]] = {}
    while engine.has_work:
        for event in engine.step():
            assert event.token_id is not None
            told.setdefault(event.request_id, []).append(event.token_id)
    return told


def test_an_engine_forgets_who_finished_and_who_was_aborted(engine: Engine, prompts: list[list[int]]) -> None:
    params = SamplingParams(max_tokens=8, fork_selection="dynamic", ignore_eos=True)
    for i in range(6):
        engine.add(str(i), prompts[i], params)
    engine.step()
    engine.step()
    recompute = engine.executor.recompute  # type: ignore[attr-defined]
    held = recompute.kept_bytes
    assert engine.abort("3")
    assert 0 < recompute.kept_bytes < held
    drain(engine)
    assert recompute.kept_bytes == 0


@pytest.mark.numeric
def test_among_preemptions_and_other_rules_the_tokens_are_the_naive_samplers(
    model: Thoughtbubbles, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    """Little memory: requests with pages are preempted among others without, and not all states can be kept."""
    engine = Engine(model, tokenizer, EngineConfig(max_batch_size=6, page_size=4, cache_bytes=250_000))
    rules = ["causal", "dynamic", "causal", "dynamic", "causal", "fixed"] * 2
    for i, rule in enumerate(rules):
        params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, fork_selection=rule)  # type: ignore[arg-type]
        engine.add(str(i), prompts[i], params)
    told = drain(engine)
    assert engine.stats().preemptions_total > 0
    for i, rule in enumerate(rules):
        assert generate(model, prompts[i], 20, rule=rule, temperature=0) == told[str(i)]  # type: ignore[arg-type]


@pytest.mark.numeric
@torch.inference_mode()
def test_a_scored_prompt_takes_each_prefix_alone(engine: Engine, model: Thoughtbubbles) -> None:
    prompt = [random.Random(3).randrange(256) for _ in range(30)]
    params = SamplingParams(max_tokens=1, prompt_logprobs=2, return_fork_counts=True, fork_selection="dynamic")
    [completion] = engine.generate([prompt], params)
    report = completion.events[0].prompt
    assert report is not None
    assert report.scores is not None
    for place in range(1, 30):
        log_p = model(torch.tensor([prompt[:place]]), rule="dynamic")[0, -1].log_softmax(0)
        assert report.token_logprobs[place] == pytest.approx(log_p[prompt[place]].item(), abs=TOLERANCE)
        assert list(report.scores.ids[2 * (place - 1) : 2 * place]) == log_p.topk(2).indices.tolist()
    _, forks = model(torch.tensor([prompt]), rule="dynamic", return_forks=True)
    assert report.fork_counts == tuple(forks[-1].token_index[0].bincount().tolist())
