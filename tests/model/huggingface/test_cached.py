"""Tokens computed over the batch's cache have the logits of the whole text, whatever the chunks and the padding."""

import random
from dataclasses import replace

import pytest
import torch

from thoughtbubbles.model import ModelConfig, Selection, Thoughtbubbles
from thoughtbubbles.model.huggingface.cached import StreamCache, can_cache

CONFIG = ModelConfig(
    vocab_size=40, block_size=16, max_block_size=32, n_layer=4, n_head=2, n_embd=16, fork_layers=(1, 2, 3)
)
REGULAR = replace(CONFIG, fork_layers=(), max_block_size=16)
CONFIGS = [
    *(replace(CONFIG, max_block_size=kappa) for kappa in (16, 24, 32, 128)),
    replace(CONFIG, averaging="logit", fork_layers=(0, 2)),
    replace(CONFIG, averaging="rightmost", score_bias=False),
    REGULAR,
    replace(REGULAR, copies=2, averaging="rightmost"),
    replace(REGULAR, loops=2),
]


def large(config: ModelConfig) -> Thoughtbubbles:
    """Return a model with weights so large that its forks differ, in float64, where rounding does not move a fork."""
    model = Thoughtbubbles(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


@pytest.mark.numeric
@pytest.mark.parametrize("case", range(2))
@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
@torch.no_grad()
def test_chunks_have_the_logits_of_the_whole_text(config: ModelConfig, case: int) -> None:
    dice = random.Random(case)
    model = large(config)
    texts = torch.randint(40, (3, 24))
    selection = Selection.of(config, "causal", dice.choice([None, 1.5]) if config.fork_layers else None)
    cache = StreamCache(selection, len(texts), texts.device)
    parts: list[list[torch.Tensor]] = [[], [], []]
    done = [0, 0, 0]
    while min(done) < 24:
        lengths = [min(dice.choice([0, 1, 1, 2, 7]), 24 - start) for start in done]
        chunk = torch.zeros(3, max(1, *lengths), dtype=torch.int64)
        for row, (start, length) in enumerate(zip(done, lengths, strict=True)):
            chunk[row, :length] = texts[row, start : start + length]
        logits = model.readout(cache.extend(model, chunk, torch.tensor(lengths)))
        for row, length in enumerate(lengths):
            parts[row].append(logits[row, :length])
            done[row] += length
    ratio = selection.max_block_size / selection.block_size
    # Scores, positions and averages are float32: 2e-5 is 40 of its units at logits of up to 4.
    torch.testing.assert_close(torch.stack([*map(torch.cat, parts)]), model(texts, ratio=ratio), rtol=0, atol=2e-5)


@torch.no_grad()
def test_rows_are_reordered_and_repeated() -> None:
    model = large(CONFIG)
    texts, after = torch.randint(40, (2, 9)), torch.randint(40, (3, 4))
    cache = StreamCache(Selection.of(CONFIG, "causal"), 2, texts.device)
    cache.extend(model, texts, torch.tensor([9, 9]))
    rows = torch.tensor([1, 0, 1])
    cache.select_rows(rows)
    found = model.readout(cache.extend(model, after, torch.tensor([4, 4, 4])))
    torch.testing.assert_close(found, model(torch.cat((texts[rows], after), 1))[:, 9:], rtol=0, atol=2e-5)


def test_gradients_flow_through_the_cache() -> None:
    model = large(CONFIG)
    texts = torch.randint(40, (2, 9))
    cache = StreamCache(Selection.of(CONFIG, "causal"), 2, texts.device)
    for start in (0, 5, 6):
        chunk = texts[:, start : {0: 5, 5: 6, 6: 9}[start]]
        logits = model.readout(cache.extend(model, chunk, torch.full((2,), chunk.shape[1])))
    weight = model.transformer.h[0].attn.c_attn.weight
    (found,) = torch.autograd.grad(logits.sum(), weight)
    (expected,) = torch.autograd.grad(model(texts)[:, 6:].sum(), weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_what_is_not_ranked_by_scores_is_not_cached() -> None:
    assert can_cache(CONFIG, "causal")
    assert not can_cache(CONFIG, "dynamic")
    assert not can_cache(replace(CONFIG, select_by="random"), "causal")
