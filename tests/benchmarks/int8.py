"""int8 matrices on a CPU beside fp32 and bf16, and beside llama.cpp's q8_0 where xllamacpp is installed.

    python tests/benchmarks/int8.py                                # speed and size, 8M and 300M random weights
    python tests/benchmarks/int8.py --model .ncvc/runs/.../model   # quality of a trained model: bits per character

Speed: 32 tokens of prompt, 64 new ones, greedy, one stream and batches of 8; the contenders take turns, medians of
repeats, ratios to fp32. Random weights: the speed does not depend on them, the quality does, so that is measured on a
trained model only.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F

from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.clinical.samples import generate_documents
from ncvc.model.checkpoint import load_model_directory, save_model_directory
from ncvc.model.generation import Sampling, generate_batch
from ncvc.model.int8 import int8_model, measured_ids
from ncvc.model.int8_layers import input_levels, int8_weights
from ncvc.model.transformer import ModelConfig, Transformer
from ncvc.morphology import build_analyzer
from ncvc.tokenizer import Tokenizer, segment_text

PROMPT, NEW = 32, 64
SIZES = {
    "8M": {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 1024, "num_layers": 6, "num_heads": 8,
           "num_kv_heads": 2, "head_dim": 32},
    "300M": {"vocab_size": 32768, "hidden_size": 1024, "intermediate_size": 4096, "num_layers": 24, "num_heads": 16,
             "num_kv_heads": 4, "head_dim": 64},
}  # fmt: skip


def ours(model: Transformer) -> Callable[[list[list[int]]], None]:
    def run(prompts: list[list[int]]) -> None:
        generate_batch(model, prompts, sampling=Sampling(NEW), end_id=None)

    return run


def llama_cpp(path: Path, *, threads: int) -> Callable[[list[list[int]]], None]:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.port, parameters.verbosity = str(path), 0, -1
    parameters.n_parallel, parameters.n_ctx = 8, 8 * (PROMPT + NEW + 32)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)

    def post(prompt: list[int]) -> None:
        body = {"prompt": prompt, "n_predict": NEW, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        request = urllib.request.Request(
            f"{server.listening_address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        assert json.load(urllib.request.urlopen(request))["tokens_predicted"] == NEW

    def run(prompts: list[list[int]]) -> None:
        with ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(post, prompts))

    return run


def random_directory(config: ModelConfig, folder: Path) -> Path:
    """A model directory of random weights; llama.cpp wants a tokenizer, so it gets one of few pieces."""
    cleaner, analyzer = Cleaner(), build_analyzer()
    texts = [segment_text(cleaner(d.text), analyzer=analyzer) for d in generate_documents(documents=50, seed=0)]
    with warnings.catch_warnings(action="ignore"):
        tokenizer = Tokenizer.train(
            texts, vocab_size=config.vocab_size, cleaner=cleaner, analyzer=analyzer, progress=False
        )
    tokenizer.save(folder / "tokenizer")
    weights = Transformer(config, seed=0).state_dict()
    save_model_directory(folder / "model", config=config, weights=weights, tokenizer=folder / "tokenizer", training={})
    return folder / "model"


def speed(size: str, *, repeats: int, threads: int, with_llama: bool) -> None:
    config = ModelConfig(context_length=256, **SIZES[size])
    with tempfile.TemporaryDirectory() as folder:
        directory = random_directory(config, Path(folder))
        model, _ = load_model_directory(directory)
        weights = int8_weights(model)
        megabytes = {
            "fp32": config.num_parameters * 4e-6,
            "bf16": config.num_parameters * 2e-6,
            "int8": sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) * 1e-6,
        }
        contenders = {
            "fp32": ours(model),
            "bf16": ours(load_model_directory(directory)[0].to(torch.bfloat16)),
            "int8": ours(int8_model(model, weights)),
        }
        if with_llama:
            from ncvc.model.gguf import write_gguf

            facts = write_gguf(directory, output=Path(folder) / "model.gguf", type="q8_0")
            megabytes["llama.cpp q8_0"] = facts["bytes"] * 1e-6
            contenders["llama.cpp q8_0"] = llama_cpp(Path(facts["path"]), threads=threads)
        generator = torch.Generator().manual_seed(0)
        for batch in (1, 8):
            prompts = torch.randint(260, config.vocab_size, (batch, PROMPT), generator=generator).tolist()
            seconds: dict[str, list[float]] = {name: [] for name in contenders}
            for turn in range(repeats + 1):
                for name, run in contenders.items():
                    started = time.perf_counter()
                    run(prompts)
                    if turn:  # the first one warms up
                        seconds[name].append(time.perf_counter() - started)
            for name, times in seconds.items():
                ratio = statistics.median(base / own for base, own in zip(seconds["fp32"], times, strict=True))
                rate = batch * NEW / statistics.median(times)
                print(
                    f"{size:>5} ({config.num_parameters / 1e6:.0f}M)  batch {batch}  {name:<15} "
                    f"{megabytes[name]:8.1f} MB  {rate:8.1f} tokens/s  {ratio:5.2f}x fp32",
                    flush=True,
                )


@torch.inference_mode()
def quality(directory: Path) -> None:
    """Nats per token and bits per character of clinical documents the quickstart never saw (another seed)."""
    model, tokenizer = load_model_directory(directory)
    ids = measured_ids(tokenizer, model.config.context_length)
    characters = int(tokenizer.character_counts[ids[:, 1:].numpy()].sum())
    print(f"{directory}: {ids[:, 1:].numel()} tokens, {characters} characters")
    contenders = {
        "fp32": model,
        "bf16": load_model_directory(directory)[0].to(torch.bfloat16),
        "int8": int8_model(model, int8_weights(model)),
    }
    reference = None
    for name, network in contenders.items():
        logits = torch.cat([network(row)[:, :-1].float() for row in ids.split(1)])
        reference = logits if reference is None else reference
        nats = float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"))
        same = (logits.argmax(-1) == reference.argmax(-1)).double().mean()
        largest = (logits - reference).abs().max()
        print(
            f"{name:<5} {nats / ids[:, 1:].numel():.5f} nats per token  {nats / characters / math.log(2):.5f} bits per "
            f"character  first choice as in fp32 {same:.2%}  largest |logit difference| {largest:.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--sizes", default="8M,300M")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--without-llama", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, input levels {input_levels()[0]}")
    if arguments.model:
        quality(arguments.model)
        return
    with_llama = not arguments.without_llama and find_spec("xllamacpp") is not None and find_spec("gguf") is not None
    for size in arguments.sizes.split(","):
        speed(size, repeats=arguments.repeats, threads=arguments.threads, with_llama=with_llama)


if __name__ == "__main__":
    main()
