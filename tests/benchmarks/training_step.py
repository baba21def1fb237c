"""Training steps beside litgpt's GPT and transformers' ArceeForCausalLM: same shape, weights, data and optimizer.

    python tests/benchmarks/training_step.py --repeats 12

All models live in one process and take turns step by step, so that a slow moment of a shared machine hits all alike;
reported is the median over the pairs of steps. Equal work is asserted: all start from the same weights and must print
the same loss. Peak memory is measured in a process of its own per model (resident set above what imports need).
``--compile`` adds the compiled form of each (ours: its blocks).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from peers import arcee_twin

from ncvc.environment import peak_memory_bytes
from ncvc.model.optimization import adamw
from ncvc.model.transformer import ModelConfig, Transformer

SIZES = {  # about 10M and 50M parameters, the vocabulary of the quickstart's order and of the report
    "10M": {
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_layers": 8,
        "num_heads": 8,
        "num_kv_heads": 2,
        "head_dim": 32,
    },
    "50M": {
        "vocab_size": 32768,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_layers": 8,
        "num_heads": 8,
        "num_kv_heads": 2,
        "head_dim": 64,
    },
}
LENGTH = 512


def config_of(size: str) -> ModelConfig:
    return ModelConfig(context_length=LENGTH, **SIZES[size])


def reference_weights(size: str) -> Transformer:
    return Transformer(config_of(size), seed=1)


def ours(size: str) -> tuple[torch.nn.Module, Callable]:
    model = reference_weights(size)
    return model, lambda ids, labels: model.loss(ids, labels) / labels.numel()


def arcee(size: str) -> tuple[torch.nn.Module, Callable]:
    model = arcee_twin(reference_weights(size))

    def loss(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())

    return model, loss


def litgpt(size: str) -> tuple[torch.nn.Module, Callable]:
    import litgpt.model
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    litgpt.model.GptNeoxMLP.forward = lambda self, x: self.proj(F.silu(self.fc(x)))  # its class has gelu only
    config, source = config_of(size), reference_weights(size)
    model = GPT(
        Config(
            name="same-shape",
            block_size=LENGTH,
            vocab_size=config.vocab_size,
            padded_vocab_size=config.vocab_size,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_query_groups=config.num_kv_heads,
            n_embd=config.hidden_size,
            head_size=config.head_dim,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            norm_eps=config.norm_epsilon,
            mlp_class_name="GptNeoxMLP",
            intermediate_size=config.intermediate_size,
        )
    )
    with torch.no_grad():
        model.transformer.wte.weight.copy_(source.embedding.weight * config.embedding_multiplier)
        model.lm_head.weight.copy_(source.head.weight)
        for target, layer in zip(model.transformer.h, source.layers, strict=True):
            target.attn.qkv.weight.copy_(layer.attention.qkv.weight)
            target.attn.proj.weight.copy_(layer.attention.output.weight)
            target.mlp.fc.weight.copy_(layer.mlp.up.weight)
            target.mlp.proj.weight.copy_(layer.mlp.down.weight)
    return model, lambda ids, labels: chunked_cross_entropy(model(ids), labels, chunk_size=0)


MODELS = {"ncvc": ours, "arcee": arcee, "litgpt": litgpt}


class Contender:
    """One model with its optimizer; ``step`` is a whole training step with clipping."""

    def __init__(self, name: str, *, size: str, bf16: bool, compiled: bool) -> None:
        self.model, self.loss = MODELS[name](size)
        self.bf16 = bf16
        self.optimizer = adamw(self.model, learning_rate=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
        if compiled:
            if name == "ncvc":
                for layer in self.model.layers:
                    layer.compile()
            else:
                self.model.compile()

    def step(self, ids: torch.Tensor, labels: torch.Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.loss(ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def batch_of(size: str, *, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, SIZES[size]["vocab_size"], (rows, LENGTH + 1), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def compare(size: str, *, bf16: bool, rows: int, repeats: int, compiled: bool, names: list[str]) -> dict:
    ids, labels = batch_of(size, rows=rows)
    contenders = {name: Contender(name, size=size, bf16=bf16, compiled=compiled) for name in names}
    losses = {name: contender.step(ids, labels) for name, contender in contenders.items()}
    spread = max(losses.values()) - min(losses.values())
    assert spread < (2e-2 if bf16 else 1e-3), f"not the same work: first losses {losses}"
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender.step(ids, labels)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = {
        name: statistics.median(peer / own for peer, own in zip(seconds[name], seconds["ncvc"], strict=True))
        for name in names
    }
    return {
        "size": size,
        "precision": "bf16" if bf16 else "fp32",
        "rows": rows,
        "compiled": compiled,
        "tokens_per_second": {name: round(rows * LENGTH / value) for name, value in medians.items()},
        "ncvc_speed_over": {name: round(value, 3) for name, value in ratios.items() if name != "ncvc"},
    }


def peak_memory(name: str, *, size: str, bf16: bool, rows: int) -> int:
    """Bytes above the imports, of two steps in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, "--size", size, "--rows", str(rows)]
    done = subprocess.run([*command, *(["--bf16"] if bf16 else [])], capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def measure_memory(name: str, *, size: str, bf16: bool, rows: int) -> int:
    MODELS[name]("10M")  # all imports
    base = peak_memory_bytes(torch.device("cpu"))
    contender = Contender(name, size=size, bf16=bf16, compiled=False)
    for _ in range(2):
        contender.step(*batch_of(size, rows=rows))
    return peak_memory_bytes(torch.device("cpu")) - base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--size", choices=SIZES, default=None)
    parser.add_argument("--names", default="ncvc,arcee,litgpt")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", choices=MODELS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(measure_memory(arguments.memory_of, size=arguments.size, bf16=arguments.bf16, rows=arguments.rows))
        return
    names = arguments.names.split(",")
    precisions = [False] * (not arguments.bf16) + [True] * (not arguments.fp32)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, sequence {LENGTH}, {arguments.rows} rows, median of {arguments.repeats}"
    )
    for size in [arguments.size] if arguments.size else SIZES:
        for bf16 in precisions:
            row = compare(
                size,
                bf16=bf16,
                rows=arguments.rows,
                repeats=arguments.repeats,
                compiled=arguments.compile,
                names=names,
            )
            if not arguments.no_memory and not arguments.compile:
                row["peak_mib"] = {n: peak_memory(n, size=size, bf16=bf16, rows=arguments.rows) >> 20 for n in names}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
