"""Layers over live rows, against torch's: other rows may contain anything."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.engine.kernels.conftest import DEVICE, ON_GPU, by_slot, rounded
from thoughtbubbles.engine.cuda.kernels.tiles import Tiles
from thoughtbubbles.model import ModelConfig
from thoughtbubbles.model.rotary import Rotation, rotate

LIVE, MOST = 19, 40


@pytest.fixture
def rows() -> Any:  # noqa: ANN401 - the kernels' own, which nobody imports without a device
    from thoughtbubbles.engine.cuda.kernels.rows import Rows

    def whole(n: int) -> Tensor:
        return torch.zeros(n, dtype=torch.int32, device=DEVICE)

    angle = torch.rand(MOST, 6, device=DEVICE)
    return Rows(
        most=MOST, usual=LIVE, page_size=4, table=whole(1), lane=whole(1), start=whole(1), count=whole(1),
        length=whole(1), live=whole(1) + LIVE, slot=torch.randperm(64, device=DEVICE)[:MOST].int(),
        score=-torch.rand(MOST, device=DEVICE), cos=angle.cos(), sin=angle.sin(),
    )  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("parts", [1, 2, 3])
@torch.inference_mode()
def test_inputs_shared_out_are_added_once(parts: int, bias: bool, rows: Any, monkeypatch: Any) -> None:  # noqa: ANN401
    """96 inputs in steps of 32: with two parts the second has less to do than the first."""
    from thoughtbubbles.engine.cuda.kernels import linear

    monkeypatch.setattr(linear, "tiles_of", lambda *_: Tiles(16, 32, 32, 4, 2, parts))
    layer, norm = nn.Linear(96, 24, bias=bias).to(DEVICE), nn.LayerNorm(24, bias=bias).to(DEVICE)
    x, stream = torch.randn(MOST, 96, device=DEVICE), torch.randn(MOST, 24, device=DEVICE)
    wanted = stream + rows.score.exp()[:, None] * layer(x)
    wanted[LIVE:] = stream[LIVE:]
    out = torch.full_like(stream, torch.nan)
    scratch = torch.full((6 * stream.numel(),), torch.nan, device=DEVICE)
    update = linear.residual_linear(x=x, layer=layer, residual=stream, rows=rows, scratch=scratch)
    assert (update is None) == (parts == 1)
    linear.normalise(x=stream, norm=norm, out=out, rows=rows, update=update)
    torch.testing.assert_close(stream, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out[:LIVE], norm(wanted[:LIVE]), atol=1e-5, rtol=1e-5)
    assert out[LIVE:].isnan().all()
    if update:
        linear.normalise(x=stream, norm=None, out=out, rows=rows, update=update)
        assert not torch.equal(stream, wanted), "an update is added as often as it is passed"


@pytest.mark.parametrize("tanh", [True, False])
@torch.inference_mode()
def test_gelu(tanh: bool, rows: Any) -> None:  # noqa: ANN401
    from thoughtbubbles.engine.cuda.kernels.linear import gelu_linear

    layer, x = nn.Linear(24, 40).to(DEVICE), torch.randn(MOST, 24, device=DEVICE)
    out = torch.full((MOST, 40), torch.nan, device=DEVICE)
    gelu_linear(x=x, layer=layer, out=out, rows=rows, tanh=tanh)
    wanted = F.gelu(layer(x), approximate="tanh" if tanh else "none")
    torch.testing.assert_close(out[:LIVE], wanted[:LIVE], atol=1e-5, rtol=1e-5)
    assert out[LIVE:].isnan().all()


@torch.inference_mode()
def test_gelu_of_16_bits_is_as_near_as_they_can_be(rows: Any) -> None:  # noqa: ANN401
    """One weight of 1 and inputs from -8 to 8: the result is GELU itself, rounded; 1e-6 more, before it is rounded."""
    from thoughtbubbles.engine.cuda.kernels.linear import gelu_linear

    layer = nn.Linear(16, 400, bias=True).to(DEVICE)
    layer.weight.zero_()
    layer.bias.copy_(torch.linspace(-8, 8, 400))
    layer.half()
    x, out = torch.zeros(MOST, 16, device=DEVICE).half(), torch.zeros(MOST, 400, device=DEVICE).half()
    gelu_linear(x=x, layer=layer, out=out, rows=rows, tanh=False)
    wanted = F.gelu(layer.bias.double())
    half_step = torch.finfo(torch.half).eps / 2 * wanted.abs() + torch.finfo(torch.half).smallest_normal / 1024
    assert ((out[0].double() - wanted).abs() <= half_step + 1e-6).all()


HALVES = [torch.half, *[torch.bfloat16] * ON_GPU]
"""What rows may be few in; the interpreter knows no bfloat16."""
FEW = Tiles(8, 16, 64, 2, 1, splits=2)
"""For 19 live rows they are three tiles of rows; 80 inputs are one whole step and a part of one, 128 are two."""


@pytest.fixture
def of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    from thoughtbubbles.engine.cuda.kernels import linear

    monkeypatch.setattr(linear, "few_tiles", lambda *_: FEW)
    monkeypatch.setattr(linear, "few", lambda *_: True)


def lively_norm(width: int, dtype: torch.dtype, *, bias: bool = True) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, bias=bias).to(DEVICE, dtype)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1, 0.3)
    return norm


def assert_close_to_exact(ours: Tensor, exact: Tensor) -> None:
    """Products of rounded inputs: to four times the distance of two numbers of the dtype, at the size of the result."""
    size = max(1.0, float(exact.abs().max()))
    torch.testing.assert_close(ours.double(), exact, atol=4 * torch.finfo(ours.dtype).eps * size, rtol=0)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [80, 128])
@pytest.mark.usefixtures("of_few")
@torch.inference_mode()
def test_gelu_of_few_rows_with_their_norm(width: int, bias: bool, dtype: torch.dtype, rows: Any) -> None:  # noqa: ANN401
    from thoughtbubbles.engine.cuda.kernels.linear import gelu_linear

    layer, norm = nn.Linear(width, 40, bias=bias).to(DEVICE, dtype), lively_norm(width, dtype, bias=bias)
    x = (3 * torch.randn(MOST, width, device=DEVICE) + 1).to(dtype)
    x[LIVE:] = torch.nan
    out = torch.full((MOST, 40), torch.nan, device=DEVICE, dtype=dtype)
    gelu_linear(x=x, layer=layer, out=out, rows=rows, tanh=False, norm=norm)
    assert_close_to_exact(out[:LIVE], F.gelu(layer.double()(norm.double()(x[:LIVE].double()))))
    assert out[LIVE:].isnan().all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.usefixtures("of_few")
@torch.inference_mode()
def test_heads_of_few_rows_with_their_norm(dtype: torch.dtype, rows: Any) -> None:  # noqa: ANN401
    """Two heads of width 12 in blocks of 8 channels and their partners."""
    from thoughtbubbles.engine.cuda.kernels.linear import project_heads

    layer, norm = nn.Linear(24, 72).to(DEVICE, dtype), lively_norm(24, dtype)
    x = torch.randn(MOST, 24, device=DEVICE).to(dtype)
    queries = torch.full((MOST, 2, 12), torch.nan, device=DEVICE, dtype=dtype)
    keys, values = torch.full((2, 2, 64, 12), torch.nan, device=DEVICE, dtype=dtype)
    project_heads(
        x=x, layer=layer, queries=queries, keys=keys, values=values, rows=rows, scored=False, first=True, norm=norm
    )
    exact = layer.double()(norm.double()(x[:LIVE].double()))
    q, k, v = (part.view(LIVE, 2, 12) for part in exact.split(24, dim=1))
    by = Rotation(rows.cos[:LIVE, None].double(), rows.sin[:LIVE, None].double())
    slots = rows.slot[:LIVE].long()
    assert_close_to_exact(queries[:LIVE], rotate(q, by))
    assert_close_to_exact(keys[:, slots].transpose(0, 1), rotate(k, by))
    assert_close_to_exact(values[:, slots].transpose(0, 1), v)
    assert queries[LIVE:].isnan().all()
    assert keys.isnan().sum() == (64 - LIVE) * 24


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [80, 128])
@pytest.mark.usefixtures("of_few")
@torch.inference_mode()
def test_few_rows_are_added_at_once(width: int, bias: bool, dtype: torch.dtype, rows: Any) -> None:  # noqa: ANN401
    from thoughtbubbles.engine.cuda.kernels.linear import residual_linear

    layer = nn.Linear(width, 24, bias=bias).to(DEVICE, dtype)
    x, stream = (torch.randn(MOST, n, device=DEVICE).to(dtype) for n in (width, 24))
    before, scratch = stream.clone(), torch.empty(0, device=DEVICE)
    assert residual_linear(x=x, layer=layer, residual=stream, rows=rows, scratch=scratch) is None
    exact = before.double() + rows.score.exp().double()[:, None] * layer.double()(x.double())
    assert_close_to_exact(stream[:LIVE], exact[:LIVE])
    assert torch.equal(stream[LIVE:], before[LIVE:])


@pytest.mark.parametrize("columns", [16, 32])
@pytest.mark.parametrize("scored", [True, False])
@torch.inference_mode()
def test_heads(scored: bool, columns: int, rows: Any, monkeypatch: Any) -> None:  # noqa: ANN401
    """Two heads of width 12, whose halves are no power of two; a program computes one or both."""
    from thoughtbubbles.engine.cuda.kernels import linear
    from thoughtbubbles.engine.cuda.kernels.linear import Recent, project_heads

    monkeypatch.setattr(linear, "tiles_of", lambda *_: Tiles(16, columns, 32, 4, 2))
    layer, x = nn.Linear(24, 72).to(DEVICE), torch.randn(MOST, 24, device=DEVICE)
    queries = torch.full((MOST, 2, 12), torch.nan, device=DEVICE)
    keys, values = torch.full((2, 2, 64, 12), torch.nan, device=DEVICE)
    recent = Recent(*torch.full((2, MOST, 2, 12), torch.nan, device=DEVICE))
    project_heads(
        x=x, layer=layer, queries=queries, keys=keys, values=values, rows=rows, scored=scored, first=True, recent=recent
    )
    q, k, v = (part.view(MOST, 2, 12) for part in layer(x).split(24, dim=1))
    by = Rotation(rows.cos[:, None], rows.sin[:, None])
    q, k = rotate(q, by), rotate(k, by)
    if scored:
        q[..., -1], k[..., -1] = 1, rows.score[:, None]
        v = v * rows.score.exp()[:, None, None]
    slots = rows.slot[:LIVE].long()
    for ours, torchs in (
        (queries[:LIVE], q),
        (keys[:, slots].transpose(0, 1), k),
        (values[:, slots].transpose(0, 1), v),
        (recent.keys[:LIVE], k),
        (recent.values[:LIVE], v),
    ):
        torch.testing.assert_close(ours, torchs[:LIVE], atol=1e-5, rtol=1e-5)
    assert keys.isnan().sum() == (64 - LIVE) * 24
    assert recent.keys[LIVE:].isnan().all()


@pytest.mark.parametrize("scored", [True, False])
@torch.inference_mode()
def test_heads_for_a_cache_of_eight_bits(scored: bool, rows: Any) -> None:  # noqa: ANN401
    """It has neither the scores nor their exponentials; `recent` has both, of the rounded keys and values."""
    from thoughtbubbles.engine.cuda.kernels.linear import Recent, project_heads

    layer, x = nn.Linear(24, 72).to(DEVICE), torch.randn(MOST, 24, device=DEVICE)
    queries = torch.full((MOST, 2, 12), torch.nan, device=DEVICE)
    keys, values = rounded(torch.full((2, 2, 64, 12), torch.nan, device=DEVICE))
    recent = Recent(*torch.full((2, MOST, 2, 12), torch.nan, device=DEVICE))
    cumulative = torch.full((64,), torch.nan, device=DEVICE)
    project_heads(x=x, layer=layer, queries=queries, keys=keys, values=values, rows=rows, scored=scored, first=True,
                  recent=recent, cumulative=cumulative)  # fmt: skip
    slots, c = rows.slot[:LIVE].long(), rows.score[:LIVE]
    assert torch.equal(cumulative[slots], c)
    assert cumulative.isnan().sum() == 64 - LIVE
    _, k, v = (part.view(MOST, 2, 12)[:LIVE] for part in layer(x).split(24, dim=1))
    k = rotate(k, Rotation(rows.cos[:LIVE, None], rows.sin[:LIVE, None]))
    stored_k, stored_v = (each.float()[:, slots].transpose(0, 1) for each in (keys, by_slot(values, rows.page_size)))
    if scored:
        k[..., -1] = 0
    for stored, exact in ((stored_k, k), (stored_v, v)):
        nearest = exact.abs() * 2**-4 + 2**-10  # half the distance of two numbers; below 2^-6 all are 2^-9 apart
        assert ((stored - exact).abs() <= nearest + 1e-5).all()
        assert not torch.equal(stored, exact)
    if scored:
        stored_k[..., -1], stored_v = c[:, None], stored_v * c.exp()[:, None, None]
    torch.testing.assert_close(recent.keys[:LIVE], stored_k, atol=0, rtol=0)
    torch.testing.assert_close(recent.values[:LIVE], stored_v, atol=0, rtol=1e-6)


@torch.inference_mode()
def test_a_cache_of_eight_bits_has_numbers_of_a_request_without(rows: Any) -> None:  # noqa: ANN401
    """Its pages go to others, whose attention multiplies what it left there by 0."""
    from thoughtbubbles.engine.cuda.kernels.linear import project_heads

    layer, x = nn.Linear(24, 72).to(DEVICE), torch.full((MOST, 24), torch.nan, device=DEVICE)
    queries = torch.zeros(MOST, 2, 12, device=DEVICE)
    keys, values = rounded(torch.ones(2, 2, 64, 12, device=DEVICE))
    project_heads(x=x, layer=layer, queries=queries, keys=keys, values=values, rows=rows, scored=True, first=True,
                  cumulative=torch.zeros(64, device=DEVICE))  # fmt: skip
    assert queries[:LIVE, :, :-1].isnan().all()
    found = by_slot(values, rows.page_size).float()[:, rows.slot[:LIVE].long()]
    assert not found.any()


@pytest.mark.gpu
@torch.inference_mode()
def test_what_is_too_large_for_eight_bits_becomes_their_largest(rows: Any) -> None:  # noqa: ANN401
    from thoughtbubbles.engine.cuda.kernels.linear import project_heads

    layer, x = nn.Linear(24, 72).to(DEVICE), torch.randn(MOST, 24, device=DEVICE)
    layer.weight.mul_(1e6)
    queries, values = torch.zeros(MOST, 2, 12, device=DEVICE), rounded(torch.zeros(2, 64, 12, device=DEVICE))
    project_heads(x=x, layer=layer, queries=queries, keys=torch.zeros_like(values), values=values, rows=rows,
                  scored=True, first=True, cumulative=torch.zeros(64, device=DEVICE))  # fmt: skip
    found = by_slot(values, rows.page_size).float()[:, rows.slot[:LIVE].long()].transpose(0, 1)
    wanted = layer(x)[:LIVE, 48:].view(LIVE, 2, 12).clamp(-448, 448)
    assert (wanted.abs() == 448).float().mean() > 0.9
    torch.testing.assert_close(found, wanted, atol=0, rtol=2**-4)


@pytest.mark.parametrize("library", [False, True])
@pytest.mark.parametrize("usual", [1, 9, 32, 64, 128, 200, 512, 1000, 5000])
@torch.inference_mode()
def test_halves_however_they_are_cut(usual: int, library: bool, rows: Any, monkeypatch: Any) -> None:  # noqa: ANN401
    """An MLP in tiles for fewer rows and for more than there are; the interpreter knows no bfloat16.

    The library multiplies all rows, where there are no more than usual.
    """
    from thoughtbubbles.engine.cuda.kernels import linear
    from thoughtbubbles.engine.cuda.layers import Scratch, num_sums

    config = ModelConfig(vocab_size=9, block_size=8, max_block_size=16, n_layer=1, n_head=1, n_embd=48, fork_layers=())
    fc, proj = (nn.Linear(*sizes).to(DEVICE, torch.half) for sizes in ((48, 192), (192, 48)))
    norm, rows = nn.LayerNorm(48).to(DEVICE, torch.half), replace(rows, usual=usual)
    x, stream = torch.randn(2, MOST, 48, device=DEVICE).half()
    if library:
        monkeypatch.setattr(linear, "LIBRARY_ROWS", MOST)
        monkeypatch.setattr("thoughtbubbles.engine.cuda.layers.LIBRARY_ROWS", MOST)
    scratch = Scratch.zeros(config, x, batch_size=1, rows=MOST, sums=num_sums(MOST, usual, 48))
    wanted = stream[:LIVE] + rows.score[:LIVE].exp()[:, None] * proj(F.gelu(fc(x[:LIVE])))
    linear.gelu_linear(x=x, layer=fc, out=scratch.hidden, rows=rows, tanh=False)
    update = linear.residual_linear(x=scratch.hidden, layer=proj, residual=stream, rows=rows, scratch=scratch.sums)
    assert (update is not None and update.sums.dtype == torch.half) == (library and usual >= MOST)
    linear.normalise(x=stream, norm=norm, out=scratch.normed, rows=rows, update=update)
    torch.testing.assert_close(stream[:LIVE].float(), wanted, atol=0.05, rtol=0.02)
    torch.testing.assert_close(scratch.normed[:LIVE], norm(stream[:LIVE]), atol=0.05, rtol=0.02)
