"""The network: its size, equality with an independent implementation, documents, dropout, golden loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import REPORT
from torch import nn

from ncvc.model.initialization import VARIANTS
from ncvc.model.transformer import (
    ModelConfig,
    RMSNorm,
    RotaryTable,
    Transformer,
    positions_within_documents,
    rotate,
)

SMALL = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "context_length": 32,
}


def small_model(seed: int = 0, **changes) -> Transformer:
    return Transformer(ModelConfig(**{**SMALL, **changes}), seed=seed)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, SMALL["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# --- size ---


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("init", VARIANTS)
def test_the_reports_shape_has_exactly_the_reports_parameters(init, qk_norm):
    config = ModelConfig(**REPORT, init=init, qk_norm=qk_norm)
    with torch.device("meta"):
        model = Transformer(config)
    counted = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    matrices = 2 * 2048 * 32 * 64 + 2 * 2048 * 8 * 64 + 2 * 2048 * 8192  # W_Q and W_O, W_K and W_V, W_1 and W_2
    expected = 2 * 32_768 * 2048 + 24 * (matrices + 2 * 2048) + 2048
    assert expected == 1_191_282_688
    extra = (24 * 2 * 64 if qk_norm else 0) + (24 * 6 + 2 if init == "wesar" else 0)
    assert counted == config.num_parameters == expected + extra


def test_the_reports_weights_take_2_22_gib_in_bf16():
    assert f"{2 * ModelConfig(**REPORT).num_parameters / 2**30:.2f}" == "2.22"  # R49


@pytest.mark.parametrize("init", ["report", "wesar"])
def test_there_is_no_bias_and_no_buffer(init):
    model = small_model(init=init, qk_norm=True)
    assert not [name for name, _ in model.named_parameters() if "bias" in name]
    assert all(module.bias is None for module in model.modules() if isinstance(module, nn.Linear))
    assert list(model.buffers()) == []  # nothing that could be cast, saved or trained beside the parameters


# --- configuration ---


def test_every_problem_of_a_configuration_is_named_at_once():
    with pytest.raises(ValueError) as refusal:
        ModelConfig(
            **{**SMALL, "num_layers": 0, "num_kv_heads": 3, "head_dim": 7},
            attention_dropout=1.0,
            init="gpt3",
            attention_backend="fast",
        )
    message = str(refusal.value)
    for part in (
        "model.num_layers=0",
        "model.num_kv_heads=3",
        "1, 2, 4",
        "model.head_dim=7",
        "model.attention_dropout=1.0",
        "model.init='gpt3'",
        "model.attention_backend='fast'",
    ):
        assert part in message


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ValueError, match="hiden_size"):
        ModelConfig.from_dict({**SMALL, "hiden_size": 4})
    incomplete = {name: value for name, value in SMALL.items() if name not in ("num_heads", "head_dim")}
    with pytest.raises(ValueError, match=r"(?s)(num_heads.*head_dim|head_dim.*num_heads)"):
        ModelConfig.from_dict(incomplete)


def test_a_sequence_longer_than_the_context_is_refused_by_name():
    with pytest.raises(ValueError, match=r"33 tokens does not fit model\.context_length=32"):
        small_model()(tokens(1, 33))


# --- an independent implementation with the same weights ---


def arcee_twin(model: Transformer) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = model.config
    twin = transformers.ArceeForCausalLM(
        transformers.ArceeConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.context_length,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            hidden_act="silu",
            tie_word_embeddings=False,
            attention_bias=False,
            mlp_bias=False,
            attn_implementation="eager",
        )
    )
    state = {
        "model.embed_tokens.weight": model.embedding.weight * config.embedding_multiplier,
        "model.norm.weight": model.final_norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for index, layer in enumerate(model.layers):
        query, key, value = layer.attention.qkv.row_blocks()
        state |= {
            f"model.layers.{index}.{name}.weight": weight
            for name, weight in {
                "self_attn.q_proj": query,
                "self_attn.k_proj": key,
                "self_attn.v_proj": value,
                "self_attn.o_proj": layer.attention.output.weight,
                "mlp.up_proj": layer.mlp.up.weight,
                "mlp.down_proj": layer.mlp.down.weight,
                "input_layernorm": layer.attention_norm.weight,
                "post_attention_layernorm": layer.mlp_norm.weight,
            }.items()
        }
    twin.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()}, strict=True)
    return twin


def lively_model(**changes) -> Transformer:
    """A small model whose weights are large enough that every part shows in the logits, gains included."""
    model = small_model(**changes)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


@pytest.mark.parametrize("backend", ["auto", "sdpa", "eager"])
def test_logits_and_gradients_equal_those_of_transformers_arcee(backend):
    model = lively_model(attention_backend=backend)
    twin = arcee_twin(model)
    ids, labels = tokens(2, 32), tokens(2, 32, seed=1)
    ours, theirs = model(ids), twin(input_ids=ids).logits
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    loss = model.loss(ids, labels)
    reference = F.cross_entropy(theirs.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=0)
    loss.backward()
    reference.backward()
    layer, other = model.layers[1], twin.model.layers[1]
    scale = model.config.embedding_multiplier
    projections = [other.self_attn.q_proj, other.self_attn.k_proj, other.self_attn.v_proj]
    pairs = [
        (model.embedding.weight.grad, twin.model.embed_tokens.weight.grad * scale),
        (model.head.weight.grad, twin.lm_head.weight.grad),
        (model.final_norm.weight.grad, twin.model.norm.weight.grad),
        (layer.attention.qkv.weight.grad, torch.cat([projection.weight.grad for projection in projections])),
        (layer.attention.output.weight.grad, other.self_attn.o_proj.weight.grad),
        (layer.attention_norm.weight.grad, other.input_layernorm.weight.grad),
        (layer.mlp.up.weight.grad, other.mlp.up_proj.weight.grad),
        (layer.mlp.down.weight.grad, other.mlp.down_proj.weight.grad),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_the_loss_is_the_sum_over_positions_and_the_gate_of_the_head_is_in_it():
    for init in ("report", "wesar"):
        model = lively_model(init=init)
        ids, labels = tokens(2, 9), tokens(2, 9, seed=1)
        labels[0, 3] = -100
        expected = F.cross_entropy(model(ids).transpose(1, 2), labels, reduction="none", ignore_index=-100)
        torch.testing.assert_close(model.token_losses(ids, labels), expected.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.loss(ids, labels), expected.sum(), rtol=1e-5, atol=0)


# --- parts ---


def test_rmsnorm_is_its_formula_and_keeps_fp32_statistics_in_bf16():
    torch.manual_seed(0)
    norm = RMSNorm(4096, epsilon=1e-6)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
    x = torch.randn(3, 4096) * torch.tensor([[1e-3], [1.0], [1e3]])

    def formula(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        x = x.double()
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * gain.double()

    torch.testing.assert_close(norm(x).double(), formula(x, norm.weight), rtol=1e-5, atol=1e-6)
    halved = norm.bfloat16()(x.bfloat16()).detach()
    expected = formula(x.bfloat16(), norm.weight.detach())
    # bf16 rounds by at most 2^-9; sums of squares kept in bf16 would stall at 256 equal terms
    assert float(((halved.double() - expected) / expected.abs().clamp(min=1e-3)).abs().max()) < 2**-7


def test_rotary_turns_pairs_as_complex_numbers_and_scores_see_only_distances():
    torch.manual_seed(0)
    table = RotaryTable(head_dim=16, length=2048, base=10_000.0)
    cosine, sine = table.at(torch.device("cpu"))
    x = torch.randn(1, 2, 2048, 16)
    turned = rotate(x, cosine, sine)
    frequencies = torch.tensor([10_000.0 ** (-2 * i / 16) for i in range(8)], dtype=torch.float64)
    angles = torch.arange(2048, dtype=torch.float64)[:, None] * frequencies
    complex_ = torch.complex(x[..., :8].double(), x[..., 8:].double()) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat((complex_.real, complex_.imag), dim=-1)
    assert float((turned - expected).abs().max()) < 1e-3  # fp32 angles: 2047 x 2^-24 x |x|
    query, key = torch.randn(16), torch.randn(16)

    def at(vector: torch.Tensor, position: int) -> torch.Tensor:
        rows = slice(position, position + 1)
        return rotate(vector.view(1, 1, 1, 16), cosine[rows], sine[rows]).flatten()

    near = at(query, 7) @ at(key, 3)
    torch.testing.assert_close(at(query, 1007) @ at(key, 1003), near, rtol=0, atol=1e-3)
    assert abs(float(at(query, 12) @ at(key, 3) - near)) > 1e-2


def test_rotary_tables_stay_fp32_whatever_the_model_is_cast_to():
    model = small_model().bfloat16()
    model(tokens(1, 4))
    assert [table.dtype for table in model.rotary.at(torch.device("cpu"))] == [torch.float32] * 2
    assert not [name for name in model.state_dict() if "rotary" in name]


def test_a_model_first_used_under_inference_mode_can_still_be_trained():
    model = small_model()
    with torch.inference_mode():
        model(tokens(1, 8))
    model.loss(tokens(1, 8), tokens(1, 8, seed=1)).backward()
    fresh = small_model()
    fresh.loss(tokens(1, 8), tokens(1, 8, seed=1)).backward()
    assert all(torch.equal(gradient, gradients(fresh)[name]) for name, gradient in gradients(model).items())


def test_query_key_normalization_makes_the_scores_blind_to_the_size_of_queries_and_keys():
    with_norm, without = lively_model(qk_norm=True), lively_model(qk_norm=False)
    ids = tokens(1, 16)
    for model, same in ((with_norm, True), (without, False)):
        before = model(ids)
        query, key, _ = model.layers[0].attention.qkv.row_blocks()
        with torch.no_grad():
            query.mul_(30.0)
            key.mul_(30.0)
        assert torch.allclose(model(ids), before, rtol=0, atol=1e-3) is same


# --- documents ---


def test_positions_restart_at_every_document():
    ids = torch.tensor([[0, 0, 0, 1, 2, 2], [5, 6, 6, 6, 6, 7], [3, 3, 3, 3, 3, 3]])
    expected = []
    for row in ids.tolist():
        places: list[int] = []
        for index, document in enumerate(row):
            places.append(0 if index == 0 or document != row[index - 1] else places[-1] + 1)
        expected.append(places)
    assert positions_within_documents(ids).tolist() == expected


def test_masked_documents_turn_queries_and_keys_by_the_restarted_positions():
    """Rotary scores see only distances, so no logit tells; the tables that reach the layers do."""
    model, given = small_model(), []
    model.layers[1].register_forward_pre_hook(lambda _, inputs: given.append(inputs[1]))
    model(tokens(1, 6), document_ids=torch.tensor([[0, 0, 0, 1, 2, 2]]))
    for table, whole in zip((given[0].cosine, given[0].sine), model.rotary.at(torch.device("cpu")), strict=True):
        assert torch.equal(table, whole[[0, 1, 2, 0, 0, 1]].view(1, 1, 6, 8))


@pytest.mark.parametrize("backend", ["auto", "sdpa", "eager"])
def test_changing_document_1_cannot_change_a_logit_of_document_2_when_masked(backend):
    model = lively_model(attention_backend=backend)
    ids = tokens(2, 32)
    documents = torch.tensor([[0] * 13 + [1] * 19, [0] * 5 + [1] * 8 + [2] * 19])
    changed = ids.clone()
    changed[:, :5] = (changed[:, :5] + 7) % SMALL["vocab_size"]
    masked, masked_changed = (model(row, document_ids=documents) for row in (ids, changed))
    assert torch.equal(masked[:, 13:], masked_changed[:, 13:])
    assert torch.equal(masked[1, 5:], masked_changed[1, 5:])
    assert not torch.allclose(masked[0, 5:13], masked_changed[0, 5:13], atol=1e-3)
    open_, open_changed = model(ids), model(changed)  # off, as in the report (R101): the change gets through
    assert float((open_ - open_changed)[:, 13:].detach().abs().max()) > 1e-3


@pytest.mark.parametrize("backend", ["auto", "sdpa", "eager"])
def test_a_packed_row_gives_the_logits_of_each_document_alone(backend):
    model = lively_model(attention_backend=backend)
    ids, lengths = tokens(1, 32), [1, 12, 17, 2]
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    packed = model(ids, document_ids=documents)
    alone = torch.cat([model(part) for part in ids.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=2e-5)


def test_masked_gradients_are_the_sum_of_those_of_the_documents_alone():
    packed, alone = lively_model(), lively_model()
    ids, labels, lengths = tokens(1, 20), tokens(1, 20, seed=1), [7, 13]
    packed.loss(ids, labels, document_ids=torch.tensor([[4] * 7 + [5] * 13])).backward()
    for part, wanted in zip(ids.split(lengths, dim=1), labels.split(lengths, dim=1), strict=True):
        alone.loss(part, wanted).backward()
    for name, gradient in gradients(alone).items():
        torch.testing.assert_close(gradients(packed)[name], gradient, rtol=1e-4, atol=1e-4)


# --- dropout, activation checkpointing, golden loss ---


def test_dropout_falls_on_both_residual_branches_at_its_rate_and_never_in_evaluation():
    model = lively_model(residual_dropout=0.25)
    shares: list[float] = []
    for layer in model.layers:
        layer.dropout.register_forward_hook(lambda _, __, y: shares.append(float((y == 0).float().mean())))
    ids = tokens(8, 32)
    model(ids)
    assert len(shares) == 2 * len(model.layers)
    spread = 5 * math.sqrt(0.25 * 0.75 / (8 * 32 * 24))
    assert all(abs(share - 0.25) < spread for share in shares)
    model.eval()
    assert torch.equal(model(ids), model(ids))
    assert torch.equal(model(ids), lively_model().eval()(ids))


@pytest.mark.parametrize("backend", ["auto", "sdpa", "eager"])
def test_activation_checkpointing_gives_the_same_loss_and_gradients_with_dropout_on(backend):
    config = ModelConfig(**SMALL, attention_dropout=0.1, residual_dropout=0.1, attention_backend=backend)
    results = []
    for kept in (False, True):
        model = Transformer(config, seed=0, activation_checkpointing=kept)
        torch.manual_seed(11)
        loss = model.loss(tokens(2, 32), tokens(2, 32, seed=1))
        loss.backward()
        results.append((loss.detach(), gradients(model)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(gradient, results[1][1][name]) for name, gradient in results[0][1].items())
    torch.manual_seed(12)
    assert model.loss(tokens(2, 32), tokens(2, 32, seed=1)) != results[0][0]  # dropout really was on


def test_the_golden_loss_is_reproduced():
    """Weights of seed 0, tokens by arithmetic: a change of these figures is a change of law, to explain."""
    model = small_model(init="report")
    ids = (torch.arange(64) * 7 + torch.arange(64) ** 2 % 11).remainder(61).view(2, 32)
    labels = ids.roll(-1, dims=1)
    first = float(model.loss(ids, labels).detach()) / labels.numel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        loss = model.loss(ids, labels) / labels.numel()
        loss.backward()
        optimizer.step()
    assert (first, float(loss.detach())) == pytest.approx((4.461134, 2.450264), abs=3e-6)
