"""Attention of many new streams end to end, against torch's over the same keys laid side by side."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.engine.kernels.conftest import DEVICE, by_channel, rounded

PAGE = 4


def attend(
    heads: int, width: int, held: list[int], new: list[int], *, eight_bits: bool = False
) -> tuple[Tensor, Tensor]:
    """What the kernel and what torch make of random queries, keys and values.

    In the cache are those before the new ones alone, in pages dealt at random; all else is NaN. If it has 8 bits, it
    lacks the scores, which the step's own keys and values have.
    """
    from thoughtbubbles.engine.cuda.kernels.linear import Recent
    from thoughtbubbles.engine.cuda.kernels.packed_attention import packed_attention
    from thoughtbubbles.engine.cuda.kernels.rows import Span

    pages = [-(-n // PAGE) for n in held]
    deal = torch.randperm(sum(pages) + 3, device=DEVICE)[: sum(pages)].split(pages)
    cached = torch.full((2, heads, (sum(pages) + 3) * PAGE, width), torch.nan, device=DEVICE)
    cumulative = torch.full((cached.shape[2],), torch.nan, device=DEVICE)
    if eight_bits:
        cached = rounded(cached)
    live, room = sum(new), 40
    queries, *recent = torch.full((3, live + room, heads, width), torch.nan, device=DEVICE)
    queries[:live].normal_()
    wanted, start = [], 0
    for at, before, count in zip(deal, held, new, strict=True):
        slots = (at[:, None] * PAGE + torch.arange(PAGE, device=DEVICE)).flatten()[:before]
        k, v = torch.randn(2, heads, before + count, width, device=DEVICE)
        own = slice(start, start + count)
        whole = k, v
        if eight_bits:
            k, v, c = rounded(k).float(), rounded(v).float(), -4 * torch.rand(before + count, device=DEVICE)
            k[..., -1], queries[own, :, -1], cumulative[slots] = 0, 1, c[:before]
            whole = k.clone(), v
            k[..., -1], v = c, v * c.exp()[:, None]
        for stored, late, early, part in zip(cached, recent, whole, (k, v), strict=True):
            stored[:, slots] = early[:, :before].to(stored.dtype)
            late[own] = part[:, before:].transpose(0, 1)
        mask = torch.ones(count, before + count, dtype=torch.bool, device=DEVICE).tril(before)
        q = queries[own].transpose(0, 1)
        wanted.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1))
        start += count
    table = torch.zeros((len(new), max(pages) + 64), dtype=torch.int32, device=DEVICE)
    for row, at in zip(table, deal, strict=True):
        row[: len(at)] = at
    lane = torch.arange(len(new), dtype=torch.int32, device=DEVICE)
    counts, before = (torch.tensor(each, dtype=torch.int32, device=DEVICE) for each in (new, held))
    span = Span(PAGE, table, lane, (counts.cumsum(0) - counts).int(), counts, before + counts)
    out = torch.full_like(queries, torch.nan)
    keys, values = cached[0], by_channel(cached[1], PAGE) if eight_bits else cached[1]
    packed_attention(queries=queries, recent=Recent(*recent), keys=keys, values=values, span=span, out=out,
                     most=max(new), cumulative=cumulative if eight_bits else None)  # fmt: skip
    assert out[live:].isnan().all()
    return out[:live], torch.cat(wanted)


CASES = {
    "prompts of odd lengths": ([0, 0, 0], [100, 30, 1]),
    "after prefixes, some without new streams": ([0, 70, 5, 1, 64], [1, 130, 0, 64, 65]),
    "one among empty slots": ([0, 0, 3, 0], [0, 0, 200, 0]),
    "a few after many": ([129, 3, 0, 128], [1, 2, 8, 3]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("width", [16, 24])
def test_new_streams_see_the_cached_ones_and_each_other(case: str, width: int) -> None:
    ours, torchs = attend(2 if width == 24 else 1, width, *CASES[case])
    torch.testing.assert_close(ours, torchs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("queries", "keys"), [(32, 16), (16, 64), (64, 32)])
def test_blocks_of_any_sizes(queries: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a block of queries begins within a block of keys, and where it spans several."""
    from thoughtbubbles.engine.cuda.kernels import packed_attention

    blocks = packed_attention.Blocks(queries, keys, 4, 2)
    monkeypatch.setattr(packed_attention, "blocks_of", lambda *_: blocks)
    ours, torchs = attend(1, 16, [0, 70, 16], [100, 65, 1])
    torch.testing.assert_close(ours, torchs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_cache_of_eight_bits(case: str) -> None:
    ours, torchs = attend(2, 24, *CASES[case], eight_bits=True)
    torch.testing.assert_close(ours, torchs, atol=1e-5, rtol=1e-5)
