"""The fork operation: what scores candidates get, who is gathered, and what a stream looks like afterwards."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from thoughtbubbles.model import ForkingBlock, ModelConfig, Selection, Streams
from thoughtbubbles.model.forking import candidate_scores, compact, fork, gather

D = 6


def random_streams(counts: list[int], seed: int = 0) -> Streams:
    """Streams per token of one row, with random vectors and scores."""
    token_index = torch.tensor([[t for t, q in enumerate(counts) for _ in range(q)]])
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*token_index.shape, D, generator=generator)
    return Streams(x, -torch.rand(token_index.shape, generator=generator), token_index, len(counts))


# Scores.


@pytest.mark.numeric
def test_candidate_scores_by_hand() -> None:
    """Candidate 2i is stream i's fork copy, 2i + 1 itself kept; c plus a log-probability each."""
    x, score = torch.randn(1, 3, D), torch.tensor([[0.0, -1.5, -7.0]])
    norm, projection = nn.LayerNorm(D), nn.Linear(D, 2, bias=False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    found = candidate_scores(x, score, norm, projection)[0].tolist()
    gain, shift, rows = norm.weight.tolist(), norm.bias.tolist(), projection.weight.tolist()
    for i, v in enumerate(x[0].tolist()):
        mean = sum(v) / D
        deviation = math.sqrt(sum((value - mean) ** 2 for value in v) / D + 1e-5)
        normed = [(value - mean) / deviation * g + b for value, g, b in zip(v, gain, shift, strict=True)]
        for which in (0, 1):
            s = sum(w * n for w, n in zip(rows[which], normed, strict=True))
            assert found[2 * i + which] == pytest.approx(score[0, i].item() - math.log1p(math.exp(-s)), abs=1e-5)


def test_log_probabilities_are_clamped_before_the_sum() -> None:
    """A fork logit of -80 and a keep logit of +80, on top of c = -15."""
    x = torch.tensor([[[1.0, -1.0, 1.0, -1.0, 1.0, -1.0]]])
    projection = nn.Linear(D, 2, bias=False)
    projection.weight.data = torch.stack((-x[0, 0], x[0, 0])) * 80 / D
    found = candidate_scores(x, torch.tensor([[-15.0]]), nn.LayerNorm(D), projection)
    torch.testing.assert_close(found, torch.tensor([[-35.0, -15.0]]))


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_float32_under_mixed_precision(dtype: torch.dtype) -> None:
    norm, projection = nn.LayerNorm(D).to(dtype), nn.Linear(D, 2, bias=False).to(dtype)
    x, score = torch.randn(2, 9, D, dtype=dtype), -torch.rand(2, 9)
    wanted = candidate_scores(x, score, norm, projection)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = candidate_scores(x, score, norm, projection)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    exact = F.logsigmoid(F.linear(norm(x).double(), projection.weight.double())).float()
    torch.testing.assert_close(found.view(2, 9, 2) - score[:, :, None], exact, atol=1e-5, rtol=0)


# Compacting and gathering.


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4), spare=st.integers(0, 3)
)
def test_compact_lists_the_kept_in_order(rows: list[list[bool]], spare: int) -> None:
    capacity = max(map(sum, rows)) + spare
    kept = [[i for i, keep in enumerate(row) if keep] for row in rows]
    assert compact(torch.tensor(rows), capacity).tolist() == [row + [12] * (capacity - len(row)) for row in kept]


def test_gather_by_hand() -> None:
    """Row 0 keeps fork and parent of stream 0 and stream 1 alone; row 1 has one token and padding."""
    x = torch.arange(2 * 2 * D).view(2, 2, D).float()
    streams = Streams(x, torch.zeros(2, 2), torch.tensor([[0, 1], [0, 2]]), 2)
    scores = -torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    embedding = torch.full((D,), 0.5)

    found = gather(streams, torch.tensor([[0, 1, 3], [1, 4, 4]]), scores, embedding)

    assert torch.equal(found.x[0], torch.stack((x[0, 0] + 0.5, x[0, 0], x[0, 1])))
    assert torch.equal(found.x[1, 0], x[1, 0])
    assert found.score.tolist() == [[-1.0, -2.0, -4.0], [-6.0, 0.0, 0.0]]
    assert found.token_index.tolist() == [[0, 0, 1], [0, 2, 2]]
    assert found.tokens == 2


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=8), kappa=st.integers(8, 40), seed=st.integers(0, 99))
def test_survivors_stay_in_order_with_forks_left_of_their_parents(counts: list[int], kappa: int, seed: int) -> None:
    streams = random_streams(counts, seed)
    scores = -torch.rand(1, 2 * sum(counts), generator=torch.Generator().manual_seed(seed + 100))
    embedding = torch.ones(D)
    after, candidate = fork(streams, scores, embedding, Selection(rule="causal", max_block_size=kappa, block_size=8))

    chosen = [i for i in candidate[0].tolist() if i < scores.shape[1]]
    assert chosen == sorted(set(chosen)), "in their order, each once"
    assert after.token_index[0].tolist() == sorted(after.token_index[0].tolist())
    assert {2 * i - 1 for i in torch.tensor(counts).cumsum(0).tolist()} <= set(chosen), "originals are always there"
    for place, i in enumerate(chosen):
        parent = streams.x[0, i // 2]
        assert torch.equal(after.x[0, place], parent if i % 2 else parent + embedding)
        assert after.score[0, place] == scores[0, i]
        assert after.token_index[0, place] == streams.token_index[0, i // 2]


# Learning.


def test_scores_and_vectors_learn_and_the_deleted_do_not() -> None:
    streams = random_streams([1, 2, 1])
    scores = (-torch.arange(8.0)[None]).requires_grad_()
    x, embedding = streams.x.clone().requires_grad_(), torch.ones(D, requires_grad=True)
    selection = Selection(rule="blockwise", max_block_size=5, block_size=3)
    streams = Streams(x, streams.score, streams.token_index, streams.tokens)

    after, candidate = fork(streams, scores, embedding, selection)
    assert candidate.tolist() == [[0, 1, 2, 5, 7]]
    (after.score.sum() + 10 * after.x.sum()).backward()

    assert scores.grad is not None
    assert scores.grad.tolist() == [[1, 1, 1, 0, 0, 1, 0, 1]]
    assert x.grad is not None
    assert x.grad[0, :, 0].tolist() == [20, 10, 10, 10]
    assert embedding.grad is not None
    assert embedding.grad.tolist() == [20.0] * D


def test_a_block_records_what_it_decided() -> None:
    config = ModelConfig(vocab_size=2, block_size=4, max_block_size=6, n_layer=3, n_head=1, n_embd=D, fork_layers=(2,))
    block = ForkingBlock(config, dropout=0.0)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    streams = random_streams([1, 1, 2, 1])

    after, record = block.fork(2, streams, Selection.of(config, "blockwise"))

    wanted = candidate_scores(streams.x, streams.score, block.forking_ln, block.forking_score)
    assert record.layer == 2
    assert torch.equal(record.candidate_scores, wanted)
    assert torch.equal(record.score, wanted.gather(1, record.candidate))
    assert torch.equal(record.score, after.score)
    assert torch.equal(record.token_index, after.token_index)
    assert torch.equal(record.token_index, streams.token_index.gather(1, record.candidate // 2))
    grown = record.candidate[0] % 2 == 0
    assert torch.equal(after.x[0][grown], streams.x[0][record.candidate[0][grown] // 2] + block.fork_embedding)
    assert torch.equal(after.x[0][~grown], streams.x[0][record.candidate[0][~grown] // 2])
