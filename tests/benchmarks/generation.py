"""Generation and option scoring beside transformers' ArceeForCausalLM on the same weights and prompts.

    python tests/benchmarks/generation.py --repeats 5

All live in one process and take turns, so that a slow moment of a shared machine hits all alike; reported is the
median of the ratios of turns. Transformers generates with its dynamic and its static cache; the ratio is to the faster
one. Equal work is asserted: the same greedy tokens in fp32 (up to a tie of two logits), the same log-likelihoods.
Weights are random, which changes nothing about the time. ``ncvc`` makes the packed copy of the weights anew at every
call where it pays, and that is counted; ``kept packed`` is what a server or an assistant gets, which packs once.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from peers import arcee_twin

from ncvc.model.generation import Sampling, generate_batch
from ncvc.model.packed_weights import packed_weights
from ncvc.model.scoring import score_options
from ncvc.model.transformer import ModelConfig, Transformer

SIZES = {
    "10M": (8192, 256, 1024, 8, 8, 2, 32),
    "50M": (32768, 512, 2048, 8, 8, 2, 64),
    "300M": (32768, 1024, 4096, 20, 16, 4, 64),
}
FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")


def ours(size: str, *, dtype: torch.dtype) -> Transformer:
    """Random weights, the head's ten times the usual size so that greedy choices are not ties."""
    config = ModelConfig(context_length=2048, **dict(zip(FIELDS, SIZES[size], strict=True)))
    model = Transformer(config, seed=1)
    with torch.no_grad():
        model.head.weight.mul_(10)
    return model.to(dtype).eval()


def arcee(source: Transformer) -> torch.nn.Module:
    return arcee_twin(source, bos_token_id=None, eos_token_id=None, pad_token_id=0).eval()


def theirs(model: torch.nn.Module, prompts: list[list[int]], *, new: int, cache: str) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        found = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            cache_implementation=cache,
            disable_compile=True,
        )
    return found[:, longest:].tolist()


def check_tokens(model: Transformer, prompts: list[list[int]], first: list[list[int]], second: list[list[int]]) -> None:
    """The same tokens, or at the first other one a tie of two logits."""
    for prompt, a, b in zip(prompts, first, second, strict=True):
        place = next((place for place, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), None)
        if place is not None:
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + a[:place]]))[0, -1]
            gap = abs(float(logits[a[place]] - logits[b[place]]))
            assert gap < 1e-3, f"not the same work: another token at place {place}, {gap} apart"


def take_turns(work: dict[str, Callable[[], object]], *, repeats: int) -> dict[str, list[float]]:
    for function in work.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, function in work.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], *, peers: list[str], own: str) -> float:
    """Median over the turns of (the faster peer's median turn) / own."""
    best = min(peers, key=lambda name: statistics.median(seconds[name]))
    return round(statistics.median(a / b for a, b in zip(seconds[best], seconds[own], strict=True)), 2)


def prompts_of(rows: int, *, shortest: int, longest: int, vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(shortest, longest, rows).int().tolist()
    return [torch.randint(1, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def compare_generation(
    model: Transformer, peer: torch.nn.Module, *, prompts: list[list[int]], new: int, repeats: int
) -> dict:
    sampling = Sampling(new)

    def run() -> list[list[int]]:
        return [found.ids for found in generate_batch(model, prompts, sampling=sampling, end_id=None)]

    def run_packed() -> None:
        with packed:
            run()

    if model.head.weight.dtype == torch.float32:
        check_tokens(model, prompts, run(), theirs(peer, prompts, new=new, cache="dynamic"))
    packed = KeptOpen(model)
    work = {
        "ncvc": run,
        "ncvc kept packed": run_packed,
        "transformers dynamic": lambda: theirs(peer, prompts, new=new, cache="dynamic"),
        "transformers static": lambda: theirs(peer, prompts, new=new, cache="static"),
    }
    seconds = take_turns(work, repeats=repeats)
    peers = [name for name in work if name.startswith("transformers")]
    return {
        "rows": len(prompts),
        "prompt_tokens": sorted({min(map(len, prompts)), max(map(len, prompts))}),
        "new_tokens": new,
        "tokens_per_second": {n: round(len(prompts) * new / statistics.median(t), 1) for n, t in seconds.items()},
        "speed_over_transformers": ratio(seconds, peers=peers, own="ncvc"),
        "speed_over_transformers_kept_packed": ratio(seconds, peers=peers, own="ncvc kept packed"),
    }


class KeptOpen:
    """Packed copies that exist before the clock starts and are laid in for one turn."""

    def __init__(self, model: Transformer) -> None:
        with packed_weights(model):
            self.copies = [(m, m.packed) for m in model.modules() if getattr(m, "packed", None) is not None]

    def __enter__(self) -> None:
        for module, copy in self.copies:
            module.packed = copy

    def __exit__(self, *exception: object) -> None:
        for module, _ in self.copies:
            module.packed = None


def log_likelihood(logits: torch.Tensor, prompt: list[int], option: list[int]) -> float:
    places = slice(len(prompt) - 1, len(prompt) + len(option) - 1)
    return float(logits[places].float().log_softmax(dim=-1).gather(1, torch.tensor(option).unsqueeze(1)).sum())


def compare_scoring(
    model: Transformer,
    peer: torch.nn.Module,
    *,
    items: int,
    options: int,
    option_tokens: int,
    shared: int,
    repeats: int,
) -> dict:
    """Questions of 100 to 220 tokens, of which the ``shared`` first are the same in all.

    One by one means one full pass per option, or letting the network write an answer to each question.
    """
    vocab_size = model.config.vocab_size
    prompts = prompts_of(items, shortest=100, longest=220, vocab_size=vocab_size)
    prompts = [prompts[0][:shared] + prompt[shared:] for prompt in prompts]
    answers = prompts_of(items * options, shortest=option_tokens, longest=option_tokens, vocab_size=vocab_size)
    asked = [(prompt, answers[i * options : (i + 1) * options]) for i, prompt in enumerate(prompts)]

    def together() -> list[list[float]]:
        return score_options(model, asked)

    def one_by_one(logits_of: Callable[[torch.Tensor], torch.Tensor]) -> list[list[float]]:
        with torch.inference_mode():
            return [
                [log_likelihood(logits_of(torch.tensor([prompt + answer]))[0], prompt, answer) for answer in chosen]
                for prompt, chosen in asked
            ]

    work = {
        "ncvc together": together,
        "ncvc one by one": lambda: one_by_one(model),
        "transformers one by one": lambda: one_by_one(lambda ids: peer(ids).logits),
        "ncvc generates one by one": lambda: [
            generate_batch(model, [prompt], sampling=Sampling(max(option_tokens, 4)), end_id=None) for prompt in prompts
        ],
        "transformers generates one by one": lambda: [
            theirs(peer, [prompt], new=max(option_tokens, 4), cache="dynamic") for prompt in prompts
        ],
    }
    found, expected = torch.tensor(together()), torch.tensor(work["transformers one by one"]())
    spread = float((found - expected).abs().max() / expected.abs().max())
    assert spread < (5e-2 if model.head.weight.dtype == torch.bfloat16 else 1e-4), f"not the same work: {spread}"
    seconds = take_turns(work, repeats=repeats)
    return {
        "items": items,
        "options": options,
        "option_tokens": option_tokens,
        "shared_tokens": shared,
        "items_per_second": {name: round(items / statistics.median(times), 2) for name, times in seconds.items()},
        "speed_over": {
            name: ratio(seconds, peers=[name], own="ncvc together") for name in work if name != "ncvc together"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--bf16", action="store_true", help="bf16 weights instead of fp32")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--only", choices=("batch", "unequal", "single", "scoring"))
    arguments = parser.parse_args()
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, {dtype}, median of {arguments.repeats}"
    )
    for size in arguments.size or ["10M", "50M"]:
        model = ours(size, dtype=dtype)
        peer, vocab_size = arcee(model), model.config.vocab_size
        for name, (rows, shortest, longest) in {
            "batch": (8, 64, 64),
            "unequal": (8, 8, 120),
            "single": (1, 64, 64),
        }.items():
            if arguments.only in (None, name):
                prompts = prompts_of(rows, shortest=shortest, longest=longest, vocab_size=vocab_size)
                found = compare_generation(model, peer, prompts=prompts, new=arguments.new, repeats=arguments.repeats)
                print(json.dumps({"size": size, "case": name, **found}), flush=True)
        if arguments.only in (None, "scoring"):
            for options, option_tokens, shared in ((5, 1, 0), (5, 1, 80), (4, 12, 0)):
                found = compare_scoring(
                    model,
                    peer,
                    items=12,
                    options=options,
                    option_tokens=option_tokens,
                    shared=shared,
                    repeats=arguments.repeats,
                )
                print(json.dumps({"size": size, "case": "scoring", **found}), flush=True)


if __name__ == "__main__":
    main()
