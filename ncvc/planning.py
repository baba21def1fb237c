"""What a configuration will cost, by arithmetic: parameters, FLOPs per token, memory per GPU, days.

Two counts of FLOPs are common and differ by 8% at the report's shape, so both are given and named: ``causal`` counts
the attention products that a causal kernel really does (half the square), ``full`` counts the whole square. MFU here
uses ``causal``. The input embedding is a table look-up and counts nothing. Memory is an estimate of tensors (weights,
gradients, optimizer states, kept activations, one chunk of logits), without the allocator's fragmentation.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ncvc.model.transformer import ModelConfig

# Dense bf16 peak in TFLOP/s from the vendors' data sheets (no sparsity); the name is printed beside every MFU
# (a name that contains another stands before it)
PEAK_TFLOPS = {
    "H200 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H200": 989.0,
    "H100": 989.0,
    "A100": 312.0,
    "RTX 6000 Ada": 364.0,
    "RTX A6000": 155.0,
    "L40S": 362.0,
}


@dataclass(frozen=True, kw_only=True)
class FlopsPerToken:
    """FLOPs of one training token, forward and backward (twice the forward), by part."""

    matrices: float
    attention_causal: float

    @property
    def causal(self) -> float:
        """With the attention products a causal kernel does."""
        return self.matrices + self.attention_causal

    @property
    def full(self) -> float:
        """With the whole attention square counted."""
        return self.matrices + 2 * self.attention_causal


def flops_per_token(config: ModelConfig) -> FlopsPerToken:
    """6 per matrix weight (without the input embedding) + 12 x layers x attention width x length, half if causal."""
    width = 2 * config.head_dim * (config.num_heads + config.num_kv_heads) + 2 * config.intermediate_size
    matrices = config.hidden_size * (config.num_layers * width + config.vocab_size)
    square = 12.0 * config.num_layers * config.num_heads * config.head_dim * config.context_length
    return FlopsPerToken(matrices=6.0 * matrices, attention_causal=square / 2)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes per GPU by part."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """Sum of the parts, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def memory_per_gpu(
    config: ModelConfig,
    *,
    micro_batch_size: int,
    ranks: int,
    zero_stage: int,
    bf16: bool,
    activation_checkpointing: bool,
) -> MemoryEstimate:
    """Tensor bytes on one GPU while training.

    ZeRO-2 keeps bf16 weights everywhere and divides fp32 gradients, master weights and AdamW's two moments by the ranks
    (with fp32 accumulation). Without ZeRO everything is fp32 on every GPU (autocast), which is DDP and one GPU.
    """
    parameters = config.num_parameters
    share = ranks if zero_stage >= 2 else 1
    weights = parameters * (2 if zero_stage >= 1 and bf16 else 4)
    gradients = parameters * 4 / share
    moments = parameters * (12 if zero_stage >= 1 and bf16 else 8) / (ranks if zero_stage >= 1 else 1)
    tokens = micro_batch_size * config.context_length
    activation = 2 if bf16 else 4
    residual = tokens * config.hidden_size * (activation if zero_stage >= 1 and bf16 else 4)
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    inner = tokens * activation * (4 * config.hidden_size + 2 * queries + 2 * keys + 2 * config.intermediate_size)
    layer = inner + 2 * residual
    kept = config.num_layers * residual + layer if activation_checkpointing else config.num_layers * layer
    chunk = min(tokens, 1024) * config.vocab_size * (4 + activation)
    head = config.vocab_size * config.hidden_size * 4
    return MemoryEstimate(
        weights=weights, gradients=gradients, optimizer=moments, activations=kept, logits=chunk + head
    )


def days_of_training(config: ModelConfig, *, tokens: float, peak_tflops: float, utilization: float, gpus: int) -> float:
    """Days for ``tokens`` training tokens at a given MFU (causal count) on ``gpus`` devices of ``peak_tflops``."""
    return tokens * flops_per_token(config).causal / (peak_tflops * 1e12 * utilization * gpus) / 86_400


def run_facts(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `plan` must know of a run, out of the plain values of a composed training configuration."""
    trainer, data = values["trainer"], values["data"]
    strategy = trainer["strategy"]
    sharded = isinstance(strategy, Mapping) and "ZeroStage2" in str(strategy.get("_target_"))
    return {
        "batch_size": data["batch_size"],
        "micro_batch_size": data["micro_batch_size"],
        "accumulation": trainer["accumulate_grad_batches"],
        "max_steps": trainer["max_steps"],
        "devices": trainer["devices"],
        "num_nodes": trainer["num_nodes"],
        "zero_stage": 2 if sharded else 0,
        "bf16": "bf16" in str(trainer["precision"]),
        "activation_checkpointing": values["module"]["activation_checkpointing"],
    }


def plan(config: ModelConfig, *, run: dict[str, Any], gpu: str, utilization: float) -> dict[str, Any]:
    """Every figure of the estimate by name; ``run`` holds batch sizes, steps, devices and facts of the strategy."""
    peak = peak_of(gpu)
    flops = flops_per_token(config)
    tokens_per_step = run["batch_size"] * config.context_length
    ranks = run["devices"] * run["num_nodes"]
    memory = memory_per_gpu(
        config,
        micro_batch_size=run["micro_batch_size"],
        ranks=ranks,
        zero_stage=run["zero_stage"],
        bf16=run["bf16"],
        activation_checkpointing=run["activation_checkpointing"],
    )
    tokens = tokens_per_step * run["max_steps"]
    return {
        **run,
        "gpus": ranks,
        "parameters": config.num_parameters,
        "parameters_without_input_embedding": config.num_parameters - config.vocab_size * config.hidden_size,
        "context_length": config.context_length,
        "tokens_per_step": tokens_per_step,
        "tokens_seen": tokens,
        "flops_per_token_causal": flops.causal,
        "flops_per_token_full": flops.full,
        "memory_bytes": {**asdict(memory), "total": memory.total},
        "checkpoint_bytes": 12 * config.num_parameters,  # fp32 weights and two moments, whatever the strategy
        "gpu": gpu,
        "peak_tflops": peak,
        "utilization": utilization,
        "tokens_per_second_per_gpu": peak * 1e12 * utilization / flops.causal,
        "days": days_of_training(config, tokens=tokens, peak_tflops=peak, utilization=utilization, gpus=ranks),
    }


def plan_as_table(figures: Mapping[str, Any]) -> str:
    """The figures of ``plan`` as aligned lines."""
    gib = 2**30
    parameters, memory = figures["parameters"], figures["memory_bytes"]
    rows = [
        ("parameters", f"{parameters:,} ({2 * parameters / gib:.2f} GiB in bf16)"),
        ("  without the input embedding", f"{figures['parameters_without_input_embedding']:,}"),
        (
            "batch",
            f"{figures['batch_size']} rows = {figures['micro_batch_size']} per GPU x {figures['gpus']} GPU(s) x "
            f"{figures['accumulation']} accumulated",
        ),
        (
            "tokens per step",
            f"{figures['tokens_per_step']:,} = {figures['batch_size']} x {figures['context_length']}",
        ),
        ("steps", f"{figures['max_steps']:,}"),
        ("tokens seen", f"{figures['tokens_seen'] / 1e9:.2f} B"),
        ("FLOPs per token, causal attention", f"{figures['flops_per_token_causal'] / 1e9:.3f} G"),
        ("FLOPs per token, full attention square", f"{figures['flops_per_token_full'] / 1e9:.3f} G"),
        ("memory per GPU (estimate)", f"{memory['total'] / gib:.1f} GiB"),
        *((f"  {name}", f"{memory[name] / gib:.1f} GiB") for name in memory if name != "total"),
        ("checkpoint with optimizer states", f"{figures['checkpoint_bytes'] / 1e9:.1f} GB"),
        ("peak", f"{figures['peak_tflops']:.0f} TFLOP/s dense bf16 ({figures['gpu']}, data sheet)"),
        (
            f"at MFU {figures['utilization']:.0%} (causal count)",
            f"{figures['tokens_per_second_per_gpu']:,.0f} tokens/s per GPU, {figures['days']:.1f} days on "
            f"{figures['gpus']} GPU(s)",
        ),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def known_peak(gpu: str) -> float | None:
    """Data-sheet peak of a GPU whose name holds a key of ``PEAK_TFLOPS``, else None."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name.lower() in gpu.lower()), None)


def peak_of(gpu: str) -> float:
    """Data-sheet peak of a GPU named like a key of ``PEAK_TFLOPS``; ``ValueError`` lists the known ones."""
    if (peak := known_peak(gpu)) is not None:
        return peak
    raise ValueError(f"bench.gpu={gpu!r} has no known peak; set it to one of {', '.join(PEAK_TFLOPS)}.")
