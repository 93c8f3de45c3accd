"""Attention over pages, against torch's over the same keys laid side by side."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.engine.kernels.conftest import DEVICE, ON_GPU, by_channel, rounded

PAGE = 4
POISON = 1024  # a page of nobody's


@pytest.fixture(autouse=True)
def looked_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Page numbers are read an iteration ahead, but never beyond the pages of a lane."""
    if ON_GPU:
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder

    loaded: list[Any] = []
    load = InterpreterBuilder.create_masked_load

    def recorded(*args: object) -> object:
        loaded.append(load(*args))
        return loaded[-1]

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", recorded)
    yield
    assert loaded
    assert not any((values.data == POISON).any() for values in loaded)


def attend(
    heads: int, width: int, held: list[int], new: list[int], splits: int, *, eight_bits: bool = False,
    dtype: torch.dtype = torch.float32, page: int = PAGE, loud: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the kernel and what torch make of random queries, keys and values, in pages dealt at random.

    In 8 bits each key has a score, by which torch's is biased, and exp of which its value is multiplied by. Queries are
    `loud` times as large as keys.
    """
    from thoughtbubbles.engine.cuda.kernels.attention import Parts, paged_attention
    from thoughtbubbles.engine.cuda.kernels.eight_bit_attention import eight_bit_attention
    from thoughtbubbles.engine.cuda.kernels.rows import Span

    totals = [a + b for a, b in zip(held, new, strict=True)]
    pages = [-(-n // page) for n in totals]
    deal = torch.randperm(POISON, device=DEVICE)[: sum(pages)].split(pages)
    keys, values = torch.full((2, heads, (POISON + 1) * page, width), torch.nan, device=DEVICE)  # what is not live
    cumulative = torch.full(((POISON + 1) * page,), torch.nan, device=DEVICE)
    if eight_bits:
        keys, values = rounded(keys), rounded(torch.full_like(values, -448))
    queries = torch.randn(sum(new), heads, width, device=DEVICE, dtype=dtype) * loud
    wanted = []
    for at, total, count, q in zip(deal, totals, new, queries.split(new), strict=True):
        slots = (at[:, None] * page + torch.arange(page, device=DEVICE)).flatten()[:total]
        k, v = torch.randn(2, heads, total, width, device=DEVICE)
        mask = torch.zeros(count, total, device=DEVICE)
        mask.masked_fill_(torch.ones_like(mask).tril(total - count) == 0, -torch.inf)
        if eight_bits:
            c = cumulative[slots] = -4 * torch.rand(total, device=DEVICE)
            keys[:, slots], values[:, slots] = rounded(k), rounded(v)
            k, v, mask = rounded(k).float(), rounded(v).float() * c.exp()[:, None], mask + c * width**-0.5
        else:
            keys[:, slots], values[:, slots] = k, v
        wanted.append(F.scaled_dot_product_attention(q.transpose(0, 1).float(), k, v, attn_mask=mask).transpose(0, 1))
    table = torch.full((len(new), max(pages) + 64), POISON, dtype=torch.int32, device=DEVICE)
    for row, at in zip(table, deal, strict=True):
        row[: len(at)] = at
    counts = torch.tensor(new, dtype=torch.int32, device=DEVICE)
    lane = torch.where(counts > 0, torch.arange(len(new), device=DEVICE), -1).int()
    length = torch.tensor(totals, dtype=torch.int32, device=DEVICE)
    queries = torch.cat(
        (queries, torch.full((40, heads, width), 1e4, device=DEVICE, dtype=dtype))
    )  # room that nobody has
    span = Span(page, table, lane, (counts.cumsum(0) - counts).int(), counts, length)
    parts = Parts.empty(len(new), len(queries), heads, width, splits, DEVICE)
    out = torch.full_like(queries, torch.nan)
    if eight_bits:
        eight_bit_attention(queries=queries, keys=keys, values=by_channel(values, page), cumulative=cumulative,
                            span=span, out=out, parts=parts, most=max(new))  # fmt: skip
    else:
        paged_attention(queries=queries, keys=keys, values=values, span=span, out=out, parts=parts, most=max(new))
    assert not parts.arrivals.any()
    return out[: sum(new)], torch.cat(wanted)


@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("width", [8, 24])
def test_a_few_queries_over_many_keys(width: int, splits: int) -> None:
    """Parts of 64 keys: with 130 there are three, and with 5 one; the first four of 8 queries see none of the last.

    With 128 keys the last part is full, and one lane is empty.
    """
    ours, torchs = attend(2, width, [129, 3, 60, 0, 0, 127], [1, 2, 8, 0, 3, 1], splits)
    torch.testing.assert_close(ours, torchs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("width", [16, 24])
def test_keys_and_values_in_eight_bits(width: int, splits: int) -> None:
    """What no stream has is NaN in keys, and in values the largest number."""
    ours, torchs = attend(2, width, [129, 3, 60, 0, 0, 127], [1, 2, 8, 0, 3, 1], splits, eight_bits=True)
    torch.testing.assert_close(ours, torchs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("page", [12, 64, 128])
def test_values_lie_in_runs_of_a_page(page: int) -> None:
    """An iteration has 64 keys: those of pages and a part, of one, or of half of one."""
    ours, torchs = attend(2, 16, [129, 3, 300], [1, 2, 8], 2, eight_bits=True, page=page)
    torch.testing.assert_close(ours, torchs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize("loud", [1, 1e4])
def test_keys_and_values_in_eight_bits_for_queries_in_float16(width: int, loud: float) -> None:
    """Queries may be as large as float16 can tell."""
    ours, torchs = attend(2, width, [129, 3, 60, 0, 0, 127], [1, 2, 8, 0, 3, 1], 4, eight_bits=True,
                          dtype=torch.float16, loud=loud)  # fmt: skip
    torch.testing.assert_close(ours.float(), torchs, atol=2e-3, rtol=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("loud", [1, 1e4, 1e20])
@pytest.mark.parametrize("width", [16, 24, 64])
def test_keys_and_values_in_eight_bits_for_queries_in_bfloat16(width: int, loud: float) -> None:
    """Products are in float16, which has no such numbers. Logits below -1e30 would count as none."""
    ours, torchs = attend(2, width, [129, 3, 60, 0, 0, 127], [1, 2, 8, 0, 3, 1], 4, eight_bits=True,
                          dtype=torch.bfloat16, loud=loud)  # fmt: skip
    torch.testing.assert_close(ours.float(), torchs, atol=1e-2, rtol=1e-2)
