"""The whole model against SPEC.md in plain words, and what it promises: causality, batches, gradients, precision."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thoughtbubbles.model import Fork, ForkingBlock, ModelConfig, Rule, Selection, Thoughtbubbles
from thoughtbubbles.model.rotary import rotation
from thoughtbubbles.model.selection import select

CONFIG = ModelConfig(vocab_size=19, block_size=8, max_block_size=16, n_layer=4, n_head=2, n_embd=16, fork_layers=(0, 2))
REGULAR = replace(CONFIG, fork_layers=())
COPY = replace(REGULAR, averaging="rightmost", copies=3)
AVERAGINGS = {
    "residual": CONFIG,
    "norm-before": replace(CONFIG, norm_before_averaging=True),
    "logit": replace(CONFIG, averaging="logit"),
    "rightmost": replace(CONFIG, averaging="rightmost"),
}
RULES: tuple[Rule, ...] = ("blockwise", "dynamic", "fixed", "causal")
every_rule = pytest.mark.parametrize("rule", RULES)
every_averaging = pytest.mark.parametrize("config", AVERAGINGS.values(), ids=AVERAGINGS)
every_kind = pytest.mark.parametrize(
    "config", [*AVERAGINGS.values(), REGULAR, COPY], ids=[*AVERAGINGS, "regular", "copy"]
)

RUNS = [3, 3, 3, 3, 3, 3, 7, 1, 7, 1, 7, 1, 12, 5, 5, 5, 0, 18, 3, 3]
"""Token ids with repeats, whose fork scores tie."""


def build(config: ModelConfig, dropout: float = 0.0) -> Thoughtbubbles:
    """A model in evaluation mode whose every parameter matters: nothing is 0, and no norm is 1."""
    torch.manual_seed(2)
    model = Thoughtbubbles(config, dropout).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def random_ids(*shape: int) -> Tensor:
    return torch.randint(CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(4))


# SPEC.md for one sequence: streams in lists, float64, a mask, the bias added, no channel packed.


class Plain:
    """The same weights, computed as SPEC.md says. Letters: S streams, N heads, H head width."""

    def __init__(self, model: Thoughtbubbles) -> None:
        self.config = model.config
        self.weights = {name.removeprefix("transformer."): w.double() for name, w in model.state_dict().items()}

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights.get(f"{name}.bias", 0)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0)

    def gelu(self, x: Tensor) -> Tensor:
        if self.config.activation == "gelu":
            return x * (1 + torch.erf(x / math.sqrt(2))) / 2
        return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2

    def attention(self, x: Tensor, positions: Tensor, at: str, c: Tensor | None) -> Tensor:
        S, N, H = len(x), self.config.n_head, self.config.head_width
        q, k, v = (each.view(S, N, H).transpose(0, 1) for each in self.linear(x, f"{at}.attn.c_attn").chunk(3, dim=-1))
        turn = torch.exp(1j * positions[:, None] * 10000.0 ** (-torch.arange(0, H, 2) / H).double())
        q, k = (torch.complex(*each.chunk(2, dim=-1)) * turn for each in (q, k))
        q, k = (torch.cat((each.real, each.imag), dim=-1) for each in (q, k))
        bias = torch.zeros(S).double()
        if c is not None and self.config.score_bias:
            q[..., -1], bias = 0, c
        if c is not None and self.config.value_attenuation:
            v = v * c.exp()[:, None]
        logits = (q @ k.transpose(1, 2) + bias) / math.sqrt(H)
        future = torch.ones(S, S).triu(1).bool()
        y = logits.masked_fill(future, -torch.inf).softmax(-1) @ v
        return self.linear(y.transpose(0, 1).reshape(S, N * H), f"{at}.attn.c_proj")

    def block(self, x: Tensor, positions: Tensor, layer: int, c: Tensor | None = None) -> Tensor:
        """With `c` None the ordinary one."""
        at, P = f"h.{layer}", c.exp()[:, None] if c is not None and self.config.residual_attenuation else 1.0
        x = x + P * self.attention(self.norm(x, f"{at}.ln_1"), positions, at, c)
        hidden = self.gelu(self.linear(self.norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc"))
        return x + P * self.linear(hidden, f"{at}.mlp.c_proj")

    def ordinary(self, ids: list[int]) -> Tensor:
        """The regular and copy-k baselines: a transformer whose positions step by 1/k, decoded at each k-th."""
        k = self.config.copies
        x = self.weights["wte.weight"][torch.tensor(ids).repeat_interleave(k)]
        for layer in range(self.config.n_layer):
            x = self.block(x, torch.arange(1, len(x) + 1).double() / k, layer)
        return self.norm(x[k - 1 :: k], "ln_f") @ self.weights["wte.weight"].T

    def forking(self, ids: list[int], selection: Selection) -> tuple[Tensor, list[list[int]]]:
        """Logits, and the streams' tokens after each fork."""
        x, c, token, forks = self.weights["wte.weight"][ids], torch.zeros(len(ids)).double(), [*range(len(ids))], []
        for layer in range(self.config.n_layer):
            if layer in self.config.fork_layers:
                x, c, token = self.fork(x, c, token, f"h.{layer}", selection)
                forks.append(token)
            positions = [t + (i - token.index(t) + 1) / token.count(t) for i, t in enumerate(token)]
            x = self.block(x, torch.tensor(positions).double(), layer, c)
        return self.average(x, c, torch.tensor(token)), forks

    def fork(
        self, x: Tensor, c: Tensor, token: list[int], at: str, selection: Selection
    ) -> tuple[Tensor, Tensor, list[int]]:
        s = self.linear(self.norm(x, f"{at}.forking_ln"), f"{at}.forking_score")
        scores = (c[:, None] - torch.log1p(torch.exp(-s)).clamp(max=20)).flatten()
        doubled = torch.tensor(token).repeat_interleave(2)
        survivors = select(selection, scores.float()[None], doubled[None], token[-1] + 1)[0].nonzero()[:, 0]
        is_fork = (survivors % 2 == 0)[:, None]
        x = x[survivors // 2] + is_fork * self.weights[f"{at}.fork_embedding"]
        return x, scores[survivors], doubled[survivors].tolist()

    def average(self, x: Tensor, c: Tensor, token: Tensor) -> Tensor:
        head, rows = self.weights["wte.weight"].T, [token == t for t in token.unique()]
        if self.config.averaging == "rightmost":
            return self.norm(torch.stack([x[row][-1] for row in rows]), "ln_f") @ head
        if self.config.averaging == "logit":
            p = (self.norm(x, "ln_f") @ head).softmax(-1)
            return torch.stack([c[row].softmax(0) @ p[row] for row in rows]).log()
        if self.config.norm_before_averaging:
            x = self.norm(x, "ln_f")
        x = torch.stack([c[row].exp() @ x[row] for row in rows])
        return (x if self.config.norm_before_averaging else self.norm(x, "ln_f")) @ head


def assert_by_hand(config: ModelConfig, rule: Rule, ratio: float | None = None) -> list[Fork]:
    model, ids = build(config), [*RUNS[:7], 2, 9, 4, 16]
    with torch.no_grad():
        logits, forks = model(torch.tensor([ids]), rule=rule, ratio=ratio, return_forks=True)
        wanted, tokens = Plain(model).forking(ids, Selection.of(config, rule, ratio))
    assert [fork.token_index[fork.token_index < len(ids)].tolist() for fork in forks] == tokens
    torch.testing.assert_close(logits[0], wanted.float(), atol=2e-5, rtol=1e-5)
    return forks


@pytest.mark.numeric
@every_averaging
@every_rule
def test_the_specification_by_hand(rule: Rule, config: ModelConfig) -> None:
    forks = assert_by_hand(config, rule)
    assert any(fork.token_index.shape[1] > 11 for fork in forks), "a case without forks shows nothing"


@pytest.mark.numeric
@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, bias=False),
        replace(CONFIG, activation="gelu_tanh"),
        replace(CONFIG, fork_layers=(3,)),
        replace(CONFIG, fork_layers=(0, 1, 2, 3), max_block_size=40, n_head=4),
        replace(CONFIG, score_bias=False),
        replace(CONFIG, value_attenuation=False),
        replace(CONFIG, residual_attenuation=False),
        replace(CONFIG, score_bias=False, value_attenuation=False, residual_attenuation=False),
    ],
    ids=[
        "no-bias",
        "gelu-tanh",
        "last-layer",
        "every-layer",
        "no-score-bias",
        "no-value-attenuation",
        "no-residual-attenuation",
        "no-attenuation",
    ],
)
def test_other_settings_by_hand(config: ModelConfig) -> None:
    assert_by_hand(config, "causal")


@pytest.mark.numeric
@pytest.mark.parametrize("ratio", [1, 1.3, 3, 4])
def test_other_ratios_by_hand(ratio: float) -> None:
    assert_by_hand(CONFIG, "causal", ratio)


@pytest.mark.numeric
@pytest.mark.parametrize("config", [REGULAR, replace(REGULAR, bias=False), COPY], ids=["regular", "no-bias", "copy"])
def test_baselines_are_ordinary_transformers(config: ModelConfig) -> None:
    model = build(config)
    with torch.no_grad():
        logits, forks = model(torch.tensor([RUNS]), return_forks=True)
        wanted = Plain(model).ordinary(RUNS)
    assert forks == []
    torch.testing.assert_close(logits[0], wanted.float(), atol=2e-5, rtol=1e-5)


# Positions, ratios and what is refused.


def test_a_looped_model_is_a_deeper_one_that_repeats_its_layers() -> None:
    """The same logits; the gradient of a layer is the sum over its repetitions."""
    looped = build(replace(REGULAR, n_layer=2, loops=3))
    deeper = Thoughtbubbles(replace(REGULAR, n_layer=6))
    weights = looped.state_dict()
    for name in deeper.state_dict():
        layer = re.search(r"h\.(\d)", name)
        one = name.replace(layer[0], f"h.{int(layer[1]) % 2}") if layer else name
        deeper.state_dict()[name].copy_(weights[one])
    ids = random_ids(2, 9)
    logits = [model(ids) for model in (looped, deeper)]
    torch.testing.assert_close(*logits)
    for each in logits:
        each.logsumexp(-1).sum().backward()
    gradients = {name: weight.grad for name, weight in deeper.named_parameters()}
    for name, weight in looped.named_parameters():
        layer = re.search(r"h\.(\d)", name)
        copies = [name.replace(layer[0], f"h.{int(layer[1]) + 2 * i}") for i in range(3)] if layer else [name]
        torch.testing.assert_close(weight.grad, sum(gradients[each] for each in copies), msg=name)


def test_an_original_sits_one_after_its_token() -> None:
    """Streams 1/3, 2/3 and 1 of token 0, the original of token 1; counted from token 40 when a cache goes before."""
    model, token_index = build(CONFIG), torch.tensor([[0, 0, 0, 1]])
    for first in (0, 40):
        wanted = rotation(torch.tensor([[1 / 3, 2 / 3, 1.0, 2.0]]) + first, CONFIG.head_width)
        torch.testing.assert_close(model.rotation(token_index, 2, first), wanted)


def test_ratio_one_keeps_originals_only() -> None:
    model, ids = build(CONFIG), random_ids(2, 8)
    every = [model(ids, rule=rule, ratio=1, return_forks=True) for rule in RULES]
    for logits, forks in every:
        torch.testing.assert_close(logits, every[0][0])
        assert [fork.token_index.tolist() for fork in forks] == [[[*range(8)]] * 2] * 2
        kept = forks[0].candidate_scores[:, 1::2]
        assert torch.equal(forks[0].score, kept)
        assert torch.equal(forks[1].score, forks[1].candidate_scores[:, 1::2])
        assert (forks[1].score < kept).all(), "scores accumulate"


def test_at_the_full_ratio_all_rules_agree() -> None:
    model, ids = build(replace(CONFIG, max_block_size=32)), random_ids(2, 8)
    every = [model(ids, rule=rule, return_forks=True) for rule in RULES]
    for logits, forks in every:
        assert [fork.token_index.shape[1] for fork in forks] == [16, 32]
        torch.testing.assert_close(logits, every[0][0])


def test_rules_and_ratios_differ() -> None:
    """What the tests above find equal is not equal everywhere."""
    model, ids = build(CONFIG), random_ids(1, 20)
    every = [
        model(ids, rule=rule, ratio=r) for rule, r in [("blockwise", 2), ("dynamic", 2), ("causal", 2), ("causal", 3)]
    ]
    for i, logits in enumerate(every):
        assert not any(torch.allclose(logits, other, atol=1e-4) for other in every[:i])
    assert torch.equal(model(ids), every[2]), "without further words: causal, at the model's own ratio"


@pytest.mark.parametrize("config", [CONFIG, REGULAR], ids=["forking", "regular"])
def test_mistakes_are_refused_by_name(config: ModelConfig) -> None:
    model, ids = build(config), random_ids(1, 3)
    with pytest.raises(ValueError, match=r"^rule must be one of .*, not 'best'$"):
        model(ids, rule="best")
    with pytest.raises(ValueError, match=r"^ratio must be from 1 to \d+, not 0\.5$"):
        model(ids, ratio=0.5)


@pytest.mark.parametrize("lengths", [[3], [3, 3, 3], [], [[3], [2]], 3])
def test_another_number_of_lengths_than_rows_is_refused(lengths: object) -> None:
    """One length was taken for both rows."""
    model, ids = build(CONFIG), random_ids(2, 3)
    with pytest.raises(ValueError, match=r"^lengths must have the shape \(2,\), a number for each row, not \("):
        model(ids, lengths=torch.tensor(lengths))


# Causality.


@pytest.mark.numeric
@every_averaging
def test_what_follows_changes_nothing(config: ModelConfig) -> None:
    """Under the causal rule the logits and streams of a prefix are a prefix of the logits and streams."""
    model = build(config)
    for ids in (torch.tensor([RUNS[4:18]]), torch.full((1, 14), 6), random_ids(1, 14)):
        with torch.no_grad():
            whole, forks = model(ids, return_forks=True)
            for n in range(1, ids.shape[1]):
                logits, before = model(ids[:, :n], return_forks=True)
                torch.testing.assert_close(logits, whole[:, :n], atol=1e-5, rtol=1e-5)
                for fork, longer in zip(before, forks, strict=True):
                    kept = longer.candidate[longer.token_index < n]
                    assert torch.equal(fork.candidate[fork.token_index < n], kept)


@pytest.mark.parametrize("rule", ["blockwise", "dynamic"])
def test_the_other_rules_let_what_follows_matter(rule: Rule) -> None:
    model, ids = build(CONFIG), random_ids(1, 12)
    whole = model(ids, rule=rule)
    assert not all(torch.allclose(model(ids[:, :n], rule=rule), whole[:, :n], atol=1e-4) for n in range(1, 12))


@every_rule
def test_the_budget_holds_at_every_fork(rule: Rule) -> None:
    model, ids = build(CONFIG), random_ids(3, 13)
    lengths = torch.tensor([13, 5, 9])
    for fork in model(ids, rule=rule, lengths=lengths, return_forks=True)[1]:
        streams = (fork.token_index < 13).sum(1).tolist()
        allowed = [2 * n for n in lengths.tolist()] if rule in ("dynamic", "causal") else [16] * 3
        assert all(n <= most for n, most in zip(streams, allowed, strict=True))
        assert fork.score.dtype == torch.float32
        assert (fork.score <= 0).all()


# Batches.


LENGTHS = [5, 12, 1, 9]


@pytest.mark.numeric
@every_rule
@every_kind
def test_a_row_in_a_padded_batch_is_as_alone(config: ModelConfig, rule: Rule) -> None:
    model, ids, lengths = build(config), random_ids(4, 12), torch.tensor(LENGTHS)
    padding = torch.arange(12) >= lengths[:, None]
    with torch.no_grad():
        logits, forks = model(ids, rule=rule, lengths=lengths, return_forks=True)
        other = model(ids.masked_fill(padding, 0), rule=rule, lengths=lengths)
        for b, n in enumerate(LENGTHS):
            alone, single = model(ids[b : b + 1, :n], rule=rule, return_forks=True)
            torch.testing.assert_close(logits[b : b + 1, :n], alone, atol=1e-5, rtol=1e-5)
            assert torch.equal(other[b, :n], logits[b, :n]), "what stands in padding does not matter"
            for fork, own in zip(forks, single, strict=True):
                real = fork.token_index[b] < n
                assert fork.token_index[b][real].tolist() == own.token_index[own.token_index < n].tolist()
                assert (fork.token_index[b][~real] == 12).all()


def loss_of(model: Thoughtbubbles, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Summed cross-entropy of the next token, over the tokens that are there."""
    logits = model(ids, rule="causal", lengths=lengths)[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return losses.sum() if lengths is None else losses[torch.arange(1, ids.shape[1]) < lengths[:, None]].sum()


@pytest.mark.numeric
@every_kind
def test_padding_adds_nothing_to_gradients(config: ModelConfig) -> None:
    model, ids, lengths = build(config), random_ids(4, 12), torch.tensor(LENGTHS)
    loss_of(model, ids, lengths).backward()
    batched = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for b, n in enumerate(LENGTHS):
        loss_of(model, ids[b : b + 1, :n]).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(batched[name], parameter.grad, atol=2e-4, rtol=2e-4)


# Gradients.


@every_kind
@pytest.mark.parametrize("rule", ["blockwise", "causal"])
def test_gradients_reach_every_parameter(config: ModelConfig, rule: Rule) -> None:
    model, ids = build(config).train(), random_ids(2, 8)
    F.cross_entropy(model(ids, rule=rule).flatten(0, 1), ids.roll(-1, 1).flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        rows = parameter.grad.flatten(1) if parameter.ndim == 2 else parameter.grad[None]
        assert (rows != 0).any(1).all(), f"{name}: each row, fork and keep logit among them"


@pytest.mark.numeric
@every_averaging
def test_fork_scores_learn_the_true_slope(config: ModelConfig) -> None:
    """Scores act through attenuation alone: along the gradient the loss falls by what the gradient says.

    The selection is a step function, without a slope; at the full ratio it is constant.
    """
    model, ids = build(replace(config, max_block_size=32)), random_ids(2, 8)
    for block in (block for block in model.blocks if isinstance(block, ForkingBlock)):
        model.zero_grad()
        loss_of(model, ids).backward()
        weight = block.forking_score.weight
        assert weight.grad is not None
        step = 1e-2 * weight.grad / weight.grad.norm()
        losses = []
        for sign in (1, -1):
            weight.data += sign * step
            losses.append(loss_of(model, ids).item())
            weight.data -= sign * step
        assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(weight.grad.norm().item(), rel=0.02)


# Dropout.


def test_dropout_acts_on_embeddings_and_both_branches() -> None:
    """At dropout 1 a block in training mode changes nothing, and embeddings are nothing."""
    model, ids = build(CONFIG, dropout=1.0), random_ids(2, 8)
    streams = model.embed(ids)
    arguments = streams.x, streams.score, model.rotation(streams.token_index, streams.tokens)
    for block in model.blocks:
        assert not torch.allclose(block(*arguments), streams.x, atol=0.1)
        assert torch.equal(block.train()(*arguments), streams.x)
    assert streams.x.any()
    assert not model.train().embed(ids).x.any()


@pytest.mark.numeric
def test_each_branch_has_a_dropout_of_its_own() -> None:
    """Of two branches that are made to answer 1 everywhere, half of each is dropped and the rest doubled."""
    block = build(REGULAR, dropout=0.5).blocks[0].train()
    for projection in (block.attn.c_proj, block.mlp.c_proj):
        nn.init.zeros_(projection.weight)
        nn.init.ones_(projection.bias)
    x = torch.zeros(1, 64, 16)
    change = block(x, torch.zeros(1, 64), rotation(torch.arange(64.0)[None], 8))
    values, counts = change.unique(return_counts=True)
    assert values.tolist() == [0, 2, 4]
    assert (counts / change.numel()).tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.08)


def test_dropout_rests_in_evaluation() -> None:
    model, ids = build(CONFIG, dropout=0.3), random_ids(2, 8)
    assert torch.equal(model(ids), build(CONFIG)(ids))
    model.train()
    assert not torch.allclose(model(ids), model(ids), atol=1e-3)


# Precision.


@every_averaging
def test_mixed_precision_leaves_scores_and_positions_in_float32(config: ModelConfig) -> None:
    model, ids = build(config), random_ids(2, 8)
    seen: list[tuple[Any, ...]] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        _, forks = model(ids, return_forks=True)
    assert len(seen) == CONFIG.n_layer
    for x, score, by, *_ in seen:
        assert x.dtype == score.dtype == by.cos.dtype == by.sin.dtype == torch.float32
    for fork in forks:
        assert fork.score.dtype == fork.candidate_scores.dtype == torch.float32
        assert (fork.candidate_scores != fork.candidate_scores.bfloat16().float()).any(), "nor rounded on the way"


def test_mixed_precision_attenuates_in_float32() -> None:
    block, score = build(CONFIG).blocks[0], -3 * torch.rand(1, 8)
    updates: list[Tensor] = []
    for branch in (block.attn, block.mlp):
        branch.register_forward_hook(lambda _, __, update: updates.append(update))
    x, by = torch.randn(1, 8, 16), rotation(torch.arange(8.0)[None], 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = block(x, score, by)
    assert [update.dtype for update in updates] == [torch.bfloat16] * 2
    first, second = (score.exp()[:, :, None] * update.float() for update in updates)
    assert torch.equal(found, x + first + second)


@every_kind
def test_a_model_in_half_precision_runs_throughout(config: ModelConfig) -> None:
    """Weights in bfloat16 give about the same logits, under every averaging."""
    ids = random_ids(2, 8)
    wanted = build(config)(ids)
    found = build(config).bfloat16()(ids)
    assert found.dtype == (torch.float32 if config.averaging == "logit" else torch.bfloat16)
    assert (found.float() - wanted).norm() < 0.5 * wanted.norm()


# Compilation and names.


def test_training_compiles_in_one_graph() -> None:
    model, ids = build(replace(CONFIG, n_layer=2, fork_layers=(0, 1))).train(), random_ids(2, 8)

    def loss(ids: Tensor) -> Tensor:
        return F.cross_entropy(model(ids, rule="blockwise").flatten(0, 1), ids.roll(-1, 1).flatten())

    wanted = loss(ids)
    wanted.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    compiled: Callable[[Tensor], Tensor] = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = compiled(ids)
    found.backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], gradients)


def test_tensors_have_the_authors_names() -> None:
    names = {f"{layer}.{part}" for layer in ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
             for part in ("weight", "bias")}  # fmt: skip
    forking = {"forking_ln.weight", "forking_ln.bias", "forking_score.weight", "fork_embedding"}
    wanted = {f"transformer.h.{layer}.{name}" for layer in range(4) for name in names}
    wanted |= {f"transformer.h.{layer}.{name}" for layer in (0, 2) for name in forking}
    assert set(build(CONFIG).state_dict()) == wanted | {
        "transformer.wte.weight", "transformer.ln_f.weight", "transformer.ln_f.bias"
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streams_start_at_their_embedding_with_score_zero(dtype: torch.dtype) -> None:
    model, ids = build(CONFIG).to(dtype), torch.tensor([[4, 2, 4], [1, 0, 0]])
    streams = model.embed(ids, torch.tensor([3, 1]))
    assert torch.equal(streams.x, model.transformer.wte.weight[ids])
    assert streams.token_index.tolist() == [[0, 1, 2], [0, 3, 3]]
    assert streams.score.tolist() == [[0.0] * 3] * 2
    assert (streams.score.dtype, streams.tokens) == (torch.float32, 3)


def test_a_row_without_tokens_is_refused() -> None:
    model = Thoughtbubbles(ModelConfig(vocab_size=8, block_size=4, max_block_size=8, n_layer=1, n_head=1, n_embd=8))
    with pytest.raises(ValueError, match="ids"):
        model(torch.zeros((1, 0), dtype=torch.int64))
