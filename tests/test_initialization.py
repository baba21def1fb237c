"""Every tensor of every init variant against the formulas of the report, stated here a second time."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import REPORT

from ncvc.model.initialization import VARIANTS, describe, named_matrices, table, variant_named
from ncvc.model.optimization import adamw
from ncvc.model.transformer import ModelConfig, Transformer

# Attention is wider than the hidden size and every side differs: no shape can stand in for another
SHAPE = {
    "vocab_size": 700,
    "hidden_size": 80,
    "intermediate_size": 300,
    "num_layers": 3,
    "num_heads": 12,
    "num_kv_heads": 4,
    "head_dim": 16,
    "context_length": 32,
}


def expected_stds(init: str, shape: dict[str, int]) -> dict[str, float]:
    """Standard deviation of each effective matrix, from the text of the report and of the sweep alone."""
    hidden, layers, vocab = shape["hidden_size"], shape["num_layers"], shape["vocab_size"]
    wide = shape["intermediate_size"]
    queries, keys = shape["num_heads"] * shape["head_dim"], shape["num_kv_heads"] * shape["head_dim"]
    small = (2 / (5 * hidden)) ** 0.5
    head = (2 / (vocab + hidden)) ** 0.5
    inner = dict.fromkeys(("embedding", "query", "key", "value", "up"), small)
    depth = (2 * layers) ** 0.5
    normal = dict.fromkeys(("embedding", "query", "key", "value", "output", "up", "down", "head"), 0.02)
    report = {**inner, "output": small / depth, "down": small / depth, "head": head}
    return {
        "report": report,
        "wesar": report,
        "no_embedding_scale": report,
        "small": {**inner, "output": small, "down": small, "head": head},
        "zero_projections": {**inner, "output": 0.0, "down": 0.0, "head": head},
        "normal": normal,
        "gpt2": {**normal, "output": 0.02 / depth, "down": 0.02 / depth},
        "xavier": {
            "embedding": small,
            "query": (2 / (hidden + queries)) ** 0.5,
            "key": (2 / (hidden + keys)) ** 0.5,
            "value": (2 / (hidden + keys)) ** 0.5,
            "output": (2 / (hidden + queries)) ** 0.5,
            "up": (2 / (hidden + wide)) ** 0.5,
            "down": (2 / (hidden + wide)) ** 0.5,
            "head": head,
        },
    }[init]


def build(init: str, seed: int = 0, **changes) -> Transformer:
    return Transformer(ModelConfig(**{**SHAPE, "init": init, **changes}), seed=seed)


def effective_matrices(model: Transformer) -> list[tuple[str, str, torch.Tensor, float]]:
    """(name, kind, stored values, gate) of every matrix, found through the state dict alone."""
    config, state, found = model.config, model.state_dict(), []
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    kinds = {"embedding": "embedding", "output": "output", "up": "up", "down": "down", "head": "head"}
    for name, values in state.items():
        if values.dim() != 2:
            continue
        module = name.removesuffix(".weight")
        gates = state.get(f"{module}.gate", torch.ones(3)).tolist()
        if module.endswith("qkv"):
            blocks = values.split([queries, keys, keys])
            found += [
                (f"{module} {kind}", kind, block, gate)
                for kind, block, gate in zip(("query", "key", "value"), blocks, gates, strict=True)
            ]
        else:
            found.append((module, kinds[module.split(".")[-1]], values, gates[0]))
    return found


def test_the_set_of_variants_is_closed_and_an_unknown_one_is_refused_with_the_list():
    named = {"report", "small", "no_embedding_scale", "gpt2", "normal", "xavier", "zero_projections", "wesar"}
    assert set(VARIANTS) == named
    with pytest.raises(ValueError, match=r"model\.init='gpt3'.*report.*wesar"):
        variant_named("gpt3")


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("init", VARIANTS)
def test_every_tensor_has_the_standard_deviation_of_its_formula(init, qk_norm):
    model = build(init, qk_norm=qk_norm)
    stds = expected_stds(init, SHAPE)
    matrices = effective_matrices(model)
    assert len(matrices) == 2 + 6 * SHAPE["num_layers"]
    for name, kind, values, gate in matrices:
        expected, count = stds[kind], values.numel()
        if expected == 0.0:
            assert not values.any(), name
            continue
        effective = values.double() * gate
        assert abs(float(effective.std()) / expected - 1) < 5 / math.sqrt(2 * count), name
        assert abs(float(effective.mean())) < 5 * expected / math.sqrt(count), name
        if gate != 1.0:
            assert abs(float(values.double().std()) / math.sqrt(4e-5) - 1) < 5 / math.sqrt(2 * count), name
    vectors = {name: values for name, values in model.state_dict().items() if values.dim() == 1}
    gains = [values for name, values in vectors.items() if not name.endswith("gate")]
    assert len(gains) == 1 + SHAPE["num_layers"] * (4 if qk_norm else 2)
    assert all(bool((values == 1).all()) for values in gains)
    assert len(vectors) - len(gains) == (2 + 4 * SHAPE["num_layers"] if init == "wesar" else 0)


@pytest.mark.parametrize("init", VARIANTS)
def test_values_are_normal_and_no_two_matrices_repeat_each_other(init):
    matrices = [values for _, _, values, _ in effective_matrices(build(init)) if values.any()]
    pooled = torch.cat([(values / values.std()).flatten() for values in matrices]).double()
    for limit, share in ((1.0, 0.317311), (2.0, 0.0455003), (3.0, 0.0026998)):  # of a normal distribution
        found = float((pooled.abs() > limit).double().mean())
        assert abs(found - share) < 6 * math.sqrt(share / pooled.numel())
    starts = [tuple((values / values.std()).flatten()[:4].tolist()) for values in matrices]
    assert len(set(starts)) == len(starts)


@pytest.mark.parametrize("init", VARIANTS)
def test_the_table_gives_the_formulas_numbers_at_the_reports_shape(init):
    stds = expected_stds(init, REPORT)
    rows = table(ModelConfig(**REPORT, init=init))
    assert {row.matrix for row in rows} == set(stds) and len(rows) == 8
    for row in rows:
        assert row.std == pytest.approx(stds[row.matrix], rel=1e-12)
        assert row.stored_std * (1.0 if row.gate is None else row.gate) == pytest.approx(row.std, rel=1e-12)


def test_the_reports_numbers_are_those_of_its_formulas_not_of_its_rounded_prints():
    stds = {row.matrix: row.std for row in table(ModelConfig(**REPORT))}
    for matrix in ("embedding", "query", "key", "value", "up"):
        assert stds[matrix] == pytest.approx(0.0139754, abs=5e-8)  # R50, printed as 0.01
    for matrix in ("output", "down"):
        assert stds[matrix] == pytest.approx(0.0020172, abs=5e-8)  # R52, printed as 0.001
    assert stds["head"] == pytest.approx(0.00758, abs=5e-6)  # R53


@pytest.mark.parametrize("init", VARIANTS)
def test_describe_prints_the_numbers_of_the_table(init):
    config = ModelConfig(**REPORT, init=init)
    text = describe(config)
    printed = re.findall(r"^(\w+) +(\S+) +(\d+\.\d+)  ", text, flags=re.M)
    assert [(matrix, law) for matrix, law, _ in printed] == [(row.matrix, row.law) for row in table(config)]
    for (matrix, _, number), row in zip(printed, table(config), strict=True):
        assert float(number) == pytest.approx(row.std, abs=5.1e-7), matrix
    scaled = init not in ("no_embedding_scale", "gpt2", "normal")
    assert ("x sqrt(d) = 45.2548" in text) is scaled
    assert config.embedding_multiplier == pytest.approx(45.254834 if scaled else 1.0, abs=1e-6)  # R51


def test_named_matrices_are_exactly_the_two_dimensional_parameters():
    for init in ("report", "wesar"):
        model = build(init, qk_norm=True)
        views = [matrix for _, _, matrix in named_matrices(model)]
        wanted = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)
        assert sum(view.numel() for view in views) == wanted
        owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        assert {view.untyped_storage().data_ptr() for view in views} <= owned  # views, not copies


@pytest.mark.parametrize("init", VARIANTS)
def test_the_seed_alone_decides_the_weights(init):
    torch.manual_seed(1)
    first = build(init, seed=5).state_dict()
    torch.manual_seed(2)
    again, other = build(init, seed=5).state_dict(), build(init, seed=6).state_dict()
    assert all(torch.equal(values, again[name]) for name, values in first.items())
    for name, values in first.items():
        constant = values.dim() == 1 or (init == "zero_projections" and name.split(".")[-2] in ("output", "down"))
        assert torch.equal(values, other[name]) is constant, name


def test_building_draws_nothing_from_the_global_generator():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    build("report")
    assert torch.equal(torch.get_rng_state(), state)


def test_with_zero_projections_every_block_starts_as_the_identity():
    model, ids = build("zero_projections"), torch.arange(24).view(2, 12)
    expected = F.rms_norm(model.embedding.weight[ids] * math.sqrt(80), (80,), eps=1e-6)
    torch.testing.assert_close(model.hidden_states(ids), expected)


def test_a_gate_multiplies_its_own_matrix_and_no_other():
    model, ids = build("wesar"), torch.arange(16).view(1, 16)
    plain = model(ids).detach()
    gates = 0
    for name, parameter in list(model.named_parameters()):
        if not name.endswith("gate"):
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        blocks = module.row_blocks() if hasattr(module, "row_blocks") else (module.weight,)
        assert len(blocks) == parameter.numel()
        for index, block in enumerate(blocks):
            gates += 1
            with torch.no_grad():
                parameter[index] *= 4.0
                gated = model(ids)
                parameter[index] /= 4.0
                block.mul_(4.0)
                folded = model(ids)
                block.div_(4.0)
            assert not torch.allclose(gated, plain, rtol=1e-3, atol=1e-4), name
            torch.testing.assert_close(gated, folded, rtol=1e-4, atol=1e-4)
    assert gates == 2 + 6 * SHAPE["num_layers"]


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("init", VARIANTS)
def test_every_variant_learns_a_repeating_batch_and_moves_every_parameter(init, qk_norm):
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 4}
    config = ModelConfig(**{**SHAPE, **sizes, "num_kv_heads": 2, "head_dim": 8, "init": init, "qk_norm": qk_norm})
    model = Transformer(config)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = adamw(model, learning_rate=5e-3, betas=(0.9, 0.95), weight_decay=0.1)
    ids = torch.randint(0, 40, (4, 33), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(20):
        loss = model.loss(ids[:, :-1], ids[:, 1:]) / (4 * 32)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0] - 0.5
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert not still
