"""Every tensor is drawn from the law that SPEC.md, "Initialisation", gives it: moments within five standard errors."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from thoughtbubbles.model import ForkingBlock, ModelConfig, Thoughtbubbles

CONFIG = ModelConfig(
    vocab_size=200, block_size=8, max_block_size=16, n_layer=6, n_head=2, n_embd=64, fork_layers=(0, 1, 2, 3, 4, 5)
)
RESIDUAL = 0.02 / math.sqrt(2 * 6)
NORMAL = {
    "wte.weight": 0.02,
    "attn.c_attn.weight": 0.02,
    "attn.c_proj.weight": RESIDUAL,
    "mlp.c_fc.weight": 0.02,
    "mlp.c_proj.weight": RESIDUAL,
    "forking_score.weight": 0.02,
    "fork_embedding": 64**-0.5,
}
CONSTANT = {
    "attn.c_attn.bias": 0.0,
    "attn.c_proj.bias": 0.0,
    "mlp.c_fc.bias": 0.0,
    "mlp.c_proj.bias": 0.0,
    **{f"{norm}.{name}": value for norm in ("ln_1", "ln_2", "forking_ln", "ln_f")
       for name, value in (("weight", 1.0), ("bias", 0.0))},
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> dict[str, Tensor]:
    """The values of all layers together, under the name they have within a layer."""
    torch.manual_seed(3)
    state = Thoughtbubbles(CONFIG).state_dict()
    names = {name: name.split(".", 3 if ".h." in name else 1)[-1] for name in state}
    return {
        kind: torch.cat([state[name].flatten() for name in state if names[name] == kind])
        for kind in dict.fromkeys(names.values())
    }


def test_every_tensor_has_a_law(drawn: dict[str, Tensor]) -> None:
    assert set(drawn) == {*NORMAL, *CONSTANT}


@pytest.mark.parametrize(("name", "std"), NORMAL.items())
def test_weights_are_normal(drawn: dict[str, Tensor], name: str, std: float) -> None:
    values, n = drawn[name] / std, drawn[name].numel()
    assert n >= 6 * 64
    assert abs(values.mean()) < 5 / math.sqrt(n)
    assert abs(values.std() - 1) < 5 / math.sqrt(2 * n)
    within = (values.abs() < 1).double().mean()  # 0.577 of a uniform law would be
    assert abs(within - 0.6827) < 5 * math.sqrt(0.6827 * 0.3173 / n)


@pytest.mark.parametrize(("name", "value"), CONSTANT.items())
def test_norms_and_biases_are_constant(drawn: dict[str, Tensor], name: str, value: float) -> None:
    assert (drawn[name] == value).all()


def test_the_seed_decides() -> None:
    models = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        models.append(Thoughtbubbles(CONFIG).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["transformer.wte.weight"], models[2]["transformer.wte.weight"])


def test_an_initial_keep_logit_moves_the_mean_of_that_logit_and_nothing_else() -> None:
    torch.manual_seed(5)
    plain = Thoughtbubbles(CONFIG)
    torch.manual_seed(5)
    near_keep = Thoughtbubbles(replace(CONFIG, initial_keep_logit=4.0))
    x, score = 3 * torch.randn(2, 500, 64), torch.zeros(2, 500)
    for block, other in zip(plain.blocks, near_keep.blocks, strict=True):
        assert isinstance(block, ForkingBlock)
        assert isinstance(other, ForkingBlock)
        before, after = (each.forking_score(each.forking_ln(x)) for each in (block, other))
        torch.testing.assert_close(after - before, torch.tensor([0.0, 4.0]).expand_as(after), atol=1e-4, rtol=0)
        assert other.candidate_scores(x, score)[:, 1::2].exp().mean() > 0.97
    weights = near_keep.state_dict()
    changed = {name for name, weight in plain.state_dict().items() if not torch.equal(weight, weights[name])}
    assert changed == {f"transformer.h.{layer}.forking_ln.bias" for layer in range(6)}


def test_layers_differ() -> None:
    blocks = Thoughtbubbles(CONFIG).blocks
    assert not torch.equal(blocks[0].attn.c_attn.weight, blocks[1].attn.c_attn.weight)


def test_without_biases_there_is_none() -> None:
    config = ModelConfig.from_dict({**CONFIG.to_dict(), "bias": False})
    assert not [name for name in Thoughtbubbles(config).state_dict() if name.endswith("bias")]
