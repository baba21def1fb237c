"""The estimate against hand counts, PyTorch's own FLOP counter and tensors really allocated."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ncvc.model.initialization import VARIANTS
from ncvc.model.optimization import adamw
from ncvc.model.transformer import ModelConfig, Transformer
from ncvc.planning import days_of_training, flops_per_token, memory_per_gpu, peak_of, plan, plan_as_table

REPORT = ModelConfig(
    vocab_size=32_768,
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=24,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    context_length=2048,
)
SMALL = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_layers": 3,
    "num_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 8,
    "context_length": 64,
}
RUN = {
    "batch_size": 1024,
    "micro_batch_size": 8,
    "accumulation": 32,
    "max_steps": 24_000,
    "devices": 4,
    "num_nodes": 1,
    "zero_stage": 2,
    "bf16": True,
    "activation_checkpointing": False,
}


# --- FLOPs ---


def test_flops_per_token_at_the_reports_shape_by_hand():
    """Forward: 2 per weight that multiplies, and per layer 2 x 2048 x (positions seen) for scores and values each.

    Backward is twice the forward. A causal kernel sees half the positions on average, the full count all of them.
    """
    weights = 24 * (2048 * 2048 + 2 * 2048 * 512 + 2048 * 2048 + 2 * 2048 * 8192) + 32_768 * 2048
    assert weights == 1_124_073_472
    matrices = 3 * 2 * weights
    attention = {positions: 3 * 24 * (2 + 2) * 2048 * positions for positions in (1024, 2048)}
    flops = flops_per_token(REPORT)
    assert flops.matrices == matrices
    assert flops.causal == matrices + attention[1024] == pytest.approx(7.35e9, rel=1e-3)
    assert flops.full == matrices + attention[2048] == pytest.approx(7.95e9, rel=1e-3)


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 8}, {"num_kv_heads": 1, "head_dim": 16}], ids=str)
def test_the_full_count_equals_pytorchs_flop_counter(changes):
    """Eager attention does every product in the open, the whole square included, so the counts agree exactly."""
    config = ModelConfig(**{**SMALL, **changes}, attention_backend="eager")
    model, ids = Transformer(config), torch.zeros(2, 64, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    assert counter.get_total_flops() == 2 * 64 * flops_per_token(config).full


@pytest.mark.parametrize("init", VARIANTS)
def test_gains_and_gates_count_no_products(init):
    config = ModelConfig(**SMALL, init=init, qk_norm=True)
    assert flops_per_token(config) == flops_per_token(ModelConfig(**SMALL))


# --- days ---


def test_the_reports_14_days_come_out_of_its_own_arithmetic():
    """R68: 74.4 TFLOP/s on each of 4 GPUs, by 6ND; the causal count of this module is 2.8% above 6N."""
    tokens = 24_000 * 1024 * 2048
    assert tokens == pytest.approx(50.33e9, rel=1e-4)
    by_6nd = 6 * 1_191_282_688 * tokens / (4 * 74.4e12) / 86_400
    assert by_6nd == pytest.approx(14.0, abs=0.05)
    ours = days_of_training(REPORT, tokens=tokens, peak_tflops=74.4, utilization=1.0, gpus=4)
    assert ours == pytest.approx(by_6nd * flops_per_token(REPORT).causal / (6 * 1_191_282_688), rel=1e-12)
    assert ours == pytest.approx(14.4, abs=0.05)
    assert days_of_training(REPORT, tokens=tokens, peak_tflops=148.8, utilization=0.5, gpus=2) == pytest.approx(
        2 * ours
    )


def test_the_plan_of_the_reports_run_agrees_with_itself():
    figures = plan(REPORT, run=RUN, gpu="RTX 6000 Ada", utilization=74.4 / 364)
    assert figures["tokens_per_step"] == 2_097_152
    assert figures["tokens_seen"] == 50_331_648_000
    assert figures["gpus"] == 4
    seconds = figures["tokens_seen"] / (4 * figures["tokens_per_second_per_gpu"])
    assert figures["days"] == pytest.approx(seconds / 86_400, rel=1e-12)
    assert figures["days"] == pytest.approx(14.4, abs=0.05)
    assert 4 * figures["tokens_per_second_per_gpu"] == pytest.approx(41.6e3, rel=0.03)  # R68, by 6ND
    assert figures["memory_bytes"]["total"] == sum(
        size for name, size in figures["memory_bytes"].items() if name != "total"
    )
    text = plan_as_table(figures)
    for part in (
        "1,191,282,688 (2.22 GiB in bf16)",
        "2,097,152 = 1024 x 2048",
        "1024 rows = 8 per GPU x 4 GPU(s) x 32 accumulated",
        "50.33 B",
        "7.348 G",
        "7.952 G",
        "364 TFLOP/s dense bf16 (RTX 6000 Ada, data sheet)",
        "14.4 days on 4 GPU(s)",
    ):
        assert part in text


# --- memory ---


def test_weights_gradients_and_optimizer_are_the_bytes_really_held():
    model = Transformer(ModelConfig(**SMALL))
    optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    ids = torch.zeros(2, 64, dtype=torch.long)
    model.loss(ids, ids).backward()
    optimizer.step()
    bytes_of = lambda tensors: sum(tensor.numel() * tensor.element_size() for tensor in tensors)  # noqa: E731
    moments = [tensor for state in optimizer.state.values() for name, tensor in state.items() if name != "step"]
    estimate = memory_per_gpu(
        model.config, micro_batch_size=2, ranks=1, zero_stage=0, bf16=False, activation_checkpointing=False
    )
    assert estimate.weights == bytes_of(model.parameters())
    assert estimate.gradients == bytes_of(parameter.grad for parameter in model.parameters())
    assert estimate.optimizer == bytes_of(moments)


def test_zero_2_divides_gradients_and_optimizer_by_the_ranks_and_keeps_bf16_weights():
    one, four = (
        memory_per_gpu(REPORT, micro_batch_size=8, ranks=ranks, zero_stage=2, bf16=True, activation_checkpointing=False)
        for ranks in (1, 4)
    )
    assert one.weights == four.weights == 2 * 1_191_282_688
    assert one.optimizer == 4 * four.optimizer == 12 * 1_191_282_688
    assert one.gradients == 4 * four.gradients
    assert one.activations == four.activations


def saved_bytes(config: ModelConfig, *, rows: int, activation_checkpointing: bool) -> int:
    """Bytes of distinct tensors that autograd keeps for the backward pass of the layers, weights left out."""
    model = Transformer(config, activation_checkpointing=activation_checkpointing)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.hidden_states(torch.zeros(rows, config.context_length, dtype=torch.long))
    assert hidden.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_the_activations_of_the_estimate_are_within_a_quarter_of_those_really_kept(activation_checkpointing):
    shape = {"hidden_size": 128, "intermediate_size": 512, "num_heads": 8, "head_dim": 16, "num_layers": 6}
    config = ModelConfig(**{**SMALL, **shape})
    estimate = memory_per_gpu(
        config,
        micro_batch_size=4,
        ranks=1,
        zero_stage=0,
        bf16=False,
        activation_checkpointing=activation_checkpointing,
    )
    real = saved_bytes(config, rows=4, activation_checkpointing=activation_checkpointing)
    if activation_checkpointing:  # at the peak one layer is unfolded again
        real += saved_bytes(config, rows=4, activation_checkpointing=False) // config.num_layers
    assert estimate.activations == pytest.approx(real, rel=0.25)


def test_the_activations_of_the_reports_run_by_hand():
    """Values that each token of each layer keeps in bf16 on a GPU, and the two masks of residual dropout."""
    norms = 2 * (2048 + 2048)  # what goes into and comes out of both
    attention = (2048 + 2 * 512) + (2048 + 512) + 2048  # qkv, rotated query and key, output
    mlp = 2 * 8192  # before and after SiLU
    kept = 24 * 8 * 2048 * (2 * (norms + attention + mlp) + 2 * 2048)
    estimate = memory_per_gpu(
        REPORT, micro_batch_size=8, ranks=4, zero_stage=2, bf16=True, activation_checkpointing=False
    )
    assert estimate.activations == pytest.approx(kept, rel=0.05)


# --- peaks ---


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA RTX 6000 Ada Generation", 364.0),
        ("NVIDIA RTX A6000", 155.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA L40S", 362.0),
        ("rtx 6000 ada", 364.0),
    ],
)
def test_the_drivers_names_find_their_data_sheet(name, peak):
    assert peak_of(name) == peak


def test_an_unknown_gpu_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"bench\.gpu='Quadro P400' has no known peak.*H200.*RTX 6000 Ada"):
        peak_of("Quadro P400")
