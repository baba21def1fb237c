"""LoRA in place: starts at the base, trains adapters alone, and merges into weights that compute the same."""

import math

import pytest
import torch
from conftest import TINY_SHAPE

from ncvc.model.lora import TARGETS, LoraSettings, adapted_network, add_adapters, merged_weights
from ncvc.model.optimization import adamw
from ncvc.model.transformer import ModelConfig, Transformer

CONFIG = ModelConfig(vocab_size=60, context_length=16, **TINY_SHAPE)
SETTINGS = LoraSettings(rank=3, alpha=6.0)
IDS = torch.arange(2 * 16).view(2, 16) * 13 % 60


def tuned(config: ModelConfig = CONFIG, settings: LoraSettings = SETTINGS) -> Transformer:
    """A fp64 network whose adapters are no longer at their start."""
    network = Transformer(config, seed=2).double().eval()
    add_adapters(network, settings, seed=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(".up") and ".adapters." in name:
                parameter.normal_(0.0, 0.3, generator=generator)
            if name.endswith("gate"):
                parameter.mul_(1.0 + 0.2 * torch.rand(parameter.shape, generator=generator))
    return network


@pytest.mark.parametrize("init", ["report", "wesar"])
@torch.no_grad()
def test_it_starts_at_the_base_bit_for_bit(init):
    config = ModelConfig(vocab_size=60, context_length=16, init=init, **TINY_SHAPE)
    base, network = Transformer(config, seed=2).eval(), Transformer(config, seed=2).eval()
    add_adapters(network, SETTINGS, seed=4)
    assert torch.equal(network(IDS), base(IDS))


@pytest.mark.parametrize(
    ("init", "targets"),
    [("report", TARGETS), ("wesar", TARGETS), ("report", ("query", "value")), ("report", ("down",))],
)
@torch.no_grad()
def test_merged_weights_compute_what_the_adapters_do(init, targets):
    config = ModelConfig(vocab_size=60, context_length=16, init=init, **TINY_SHAPE)
    network = tuned(config, LoraSettings(rank=3, alpha=6.0, targets=targets))
    plain = Transformer(config).double().eval()
    plain.load_state_dict(merged_weights(network))  # strict: exactly a plain network's names
    torch.testing.assert_close(plain(IDS), network(IDS), rtol=1e-12, atol=1e-12)
    base = Transformer(config, seed=2).double().eval()
    assert (base(IDS) - network(IDS)).abs().max() > 1e-3  # the adapters do something


@torch.no_grad()
def test_the_merged_matrix_is_the_papers_formula_block_by_block():
    network = tuned()
    base = Transformer(CONFIG, seed=2).double()
    merged = merged_weights(network)
    adapters = network.layers[1].attention.qkv.adapters
    start = 0
    for kind, rows in zip(("query", "key", "value"), base.layers[1].attention.qkv.block_sizes, strict=True):
        block = slice(start, start + rows)
        expected = base.layers[1].attention.qkv.weight[block] + 6.0 / 3 * adapters[kind].up @ adapters[kind].down
        torch.testing.assert_close(merged["layers.1.attention.qkv.weight"][block], expected, rtol=0, atol=1e-15)
        start += rows
    assert torch.equal(merged["embedding.weight"], base.embedding.weight)


def test_only_adapters_are_trained_and_have_optimizer_states():
    network = tuned()
    optimizer = adamw(network, learning_rate=1e-2, betas=(0.9, 0.95), weight_decay=0.01)
    frozen = {name: value.clone() for name, value in network.named_parameters() if not value.requires_grad}
    network.loss(IDS, IDS.roll(-1, dims=1)).backward()
    assert all(parameter.grad is None for name, parameter in network.named_parameters() if name in frozen)
    optimizer.step()
    d, width, kv, inner = 32, 32, 16, 64
    pairs = [(width, d), (kv, d), (kv, d), (d, width), (inner, d), (d, inner)]  # rows, columns of the six matrices
    by_hand = CONFIG.num_layers * sum(3 * (rows + columns) for rows, columns in pairs)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert sum(parameter.numel() for parameter in held) == by_hand
    assert sum(state["exp_avg"].numel() for state in optimizer.state.values()) == by_hand
    assert all(torch.equal(dict(network.named_parameters())[name], value) for name, value in frozen.items())
    assert sum(value.numel() for value in frozen.values()) == CONFIG.num_parameters


def test_the_full_networks_adapters_are_one_hundredth_of_it():
    config = ModelConfig(
        vocab_size=32_771, hidden_size=2048, intermediate_size=8192, num_layers=24, num_heads=32, num_kv_heads=8,
        head_dim=64, context_length=2048,
    )  # fmt: skip
    with torch.device("meta"):
        network = Transformer(config)
        add_adapters(network, LoraSettings(rank=16, alpha=32.0))
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert trained == 24 * 16 * (2 * (2048 + 2048) + 2 * (512 + 2048) + 2 * (8192 + 2048))
    assert 0.010 < trained / config.num_parameters < 0.012


def test_dropout_on_the_adapters_is_for_training_alone():
    network = tuned(settings=LoraSettings(rank=3, alpha=6.0, dropout=0.5))
    assert torch.equal(network(IDS), network(IDS))
    network.train()
    assert not torch.equal(network(IDS), network(IDS))


def test_the_start_is_a_function_of_the_seed_and_within_its_bound():
    networks = []
    for seed in (1, 1, 2):
        network = Transformer(CONFIG)
        add_adapters(network, SETTINGS, seed=seed)
        networks.append({name: value for name, value in network.named_parameters() if name.endswith(".down")})
    downs = networks[0]
    assert all(torch.equal(downs[name], networks[1][name]) for name in downs)
    assert not any(torch.equal(downs[name], networks[2][name]) for name in downs)
    assert len({tuple(value.flatten().tolist()) for value in downs.values()}) == len(downs)  # none drawn twice
    for value in downs.values():
        bound = 1 / math.sqrt(value.size(1))
        assert 0.8 * bound < value.abs().max() <= bound


def test_a_network_with_adapters_is_put_together_from_its_parts():
    network = tuned()
    parts = {name: value.detach() for name, value in network.state_dict().items()}
    again = adapted_network(CONFIG, SETTINGS, parts).eval()
    assert torch.equal(again(IDS), network(IDS))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"rank": 0}, r"module\.lora\.rank=0"),
        ({"alpha": 0.0}, r"module\.lora\.alpha"),
        ({"alpha": math.nan}, r"module\.lora\.alpha"),
        ({"dropout": 1.0}, r"module\.lora\.dropout"),
        ({"targets": ("query", "head")}, r"module\.lora\.targets=\['query', 'head'\]"),
        ({"targets": ()}, r"module\.lora\.targets"),
        ({"targets": ("up", "up")}, r"module\.lora\.targets"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(values, name):
    with pytest.raises(ValueError, match=name):
        LoraSettings(**{"rank": 4, "alpha": 8.0, **values})


@pytest.mark.slow
@torch.no_grad()
def test_it_is_the_lora_of_peft_on_the_same_numbers():
    """The same network as transformers' Arcee form with silu, the same adapters as peft's: the same logits."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    network = tuned()
    arcee = transformers.ArceeConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, hidden_act="silu", max_position_embeddings=16, rms_norm_eps=1e-6,
        tie_word_embeddings=False, attention_bias=False, mlp_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    theirs = transformers.ArceeForCausalLM(arcee).double().eval()
    base, names = network.state_dict(), {}
    names["model.embed_tokens.weight"] = base["embedding.weight"] * CONFIG.embedding_multiplier
    names["lm_head.weight"], names["model.norm.weight"] = base["head.weight"], base["final_norm.weight"]
    for number in range(2):
        ours, there = f"layers.{number}", f"model.layers.{number}"
        blocks = base[f"{ours}.attention.qkv.weight"].split((32, 16, 16))
        for kind, block in zip("qkv", blocks, strict=True):
            names[f"{there}.self_attn.{kind}_proj.weight"] = block
        names[f"{there}.self_attn.o_proj.weight"] = base[f"{ours}.attention.output.weight"]
        names[f"{there}.mlp.up_proj.weight"] = base[f"{ours}.mlp.up.weight"]
        names[f"{there}.mlp.down_proj.weight"] = base[f"{ours}.mlp.down.weight"]
        names[f"{there}.input_layernorm.weight"] = base[f"{ours}.attention_norm.weight"]
        names[f"{there}.post_attention_layernorm.weight"] = base[f"{ours}.mlp_norm.weight"]
    theirs.load_state_dict(names)
    targets = {
        "q_proj": "attention.qkv.adapters.query", "k_proj": "attention.qkv.adapters.key",
        "v_proj": "attention.qkv.adapters.value", "o_proj": "attention.output.adapters.output",
        "up_proj": "mlp.up.adapters.up", "down_proj": "mlp.down.adapters.down",
    }  # fmt: skip
    theirs = peft.get_peft_model(
        theirs, peft.LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, target_modules=[*targets], bias="none")
    ).double().eval()  # fmt: skip
    filled = 0
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parts = name.split(".")
            layer, kind = parts[parts.index("layers") + 1], next(part for part in parts if part in targets)
            side = "down" if "lora_A" in parts else "up"
            parameter.copy_(base[f"layers.{layer}.{targets[kind]}.{side}"])
            filled += parameter.numel()
    assert filled == sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    torch.testing.assert_close(network(IDS), theirs(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)
    merged = theirs.merge_and_unload().state_dict()
    ours = merged_weights(network)
    for number in range(2):
        stacked = torch.cat([merged[f"model.layers.{number}.self_attn.{kind}_proj.weight"] for kind in "qkv"])
        torch.testing.assert_close(ours[f"layers.{number}.attention.qkv.weight"], stacked, rtol=1e-12, atol=1e-12)
