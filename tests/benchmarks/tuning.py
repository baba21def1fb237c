"""Tuning throughput in real tokens per second (padding not counted) beside padded loaders, on the same network.

    python tests/benchmarks/tuning.py --jmed ../shared/data/jmed_llm

Every side trains a copy of the same 10M network on the same conversations of the same steps, forward, backward and
AdamW; sides take turns step by step, and reported are medians of the ratio within a step. Asserted: same loss in every
step (they see the same targets) and the same number of real tokens. The sides:

bucketed, packed      ours, micro-batches planned within the step
longest               shuffled micro-batches padded to their longest by transformers' DataCollatorForSeq2Seq (what trl's
                      SFT collator does too)
multiple of 8         the same with pad_to_multiple_of=8
context               shuffled micro-batches padded to the whole context (``--context-steps`` steps only: it is slow)
grouped               transformers' LengthGroupedSampler, padded to the longest: another order of the data, so another
                      loss; only tokens per second can be compared

Without the JMED-LLM files conversations are made whose lengths are log-normal with the same median and mean.
"""

import argparse
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast
from transformers.trainer_pt_utils import LengthGroupedSampler

from data_modules.chat import ChatDataModule
from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.clinical.samples import write_clinical_samples
from ncvc.evaluation.jmed_llm import training_conversations
from ncvc.model.checkpoint import save_model_directory
from ncvc.model.loss import IGNORE
from ncvc.model.optimization import adamw
from ncvc.model.transformer import ModelConfig, Transformer
from ncvc.morphology import build_analyzer
from ncvc.tokenizer import Tokenizer, segment_text

VOCAB = 8192
SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_layers": 8, "num_heads": 8, "num_kv_heads": 2}
SHAPE["head_dim"] = 32


def config_of(vocab_size: int, context: int) -> ModelConfig:
    return ModelConfig(vocab_size=vocab_size, context_length=context, **SHAPE)


def write_base(home: Path, *, texts: list[str], context: int) -> Path:
    """A model directory whose tokenizer is trained on ``texts``; its weights are not used."""
    folder = home / "base"
    if not (folder / "model" / "manifest.json").is_file():
        cleaner, analyzer = Cleaner(), build_analyzer()
        segmented = (segment_text(cleaner(text), analyzer=analyzer) for text in texts)
        tokenizer = Tokenizer.train(segmented, vocab_size=VOCAB, cleaner=cleaner, analyzer=analyzer, progress=False)
        tokenizer.save(folder / "tokenizer")
        network = Transformer(config_of(VOCAB, context), seed=1)
        save_model_directory(
            folder / "model",
            config=network.config,
            weights=network.state_dict(),
            tokenizer=folder / "tokenizer",
            training={},
        )
    return folder / "model"


def write_conversations(path: Path, *, texts: list[str], count: int) -> None:
    """Conversations with log-normal lengths of question, like JMED-LLM's, and an answer of a letter."""
    draw = random.Random(0)
    whole = "".join(texts)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            length = min(3000, int(draw.lognormvariate(math.log(140), 0.75)))
            start = draw.randrange(len(whole) - length)
            turns = [{"role": "user", "content": whole[start : start + length]}, {"role": "assistant", "content": "A"}]
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")


def data_of(arguments: argparse.Namespace, layout: str) -> ChatDataModule:
    home = arguments.home
    if arguments.jmed is not None:
        examples = training_conversations(arguments.jmed, split="paper")
        texts = [message.content for example in examples for message in example.messages]
        sources = {"jmed": {"path": str(arguments.jmed), "kind": "jmed_llm", "split": "paper"}}
    else:
        samples = home / "samples.jsonl"
        write_clinical_samples(samples, documents=1500)
        texts = [json.loads(line)["text"] for line in samples.read_text(encoding="utf-8").splitlines()]
        write_conversations(home / "made.jsonl", texts=texts, count=4000)
        sources = {"made": {"path": str(home / "made.jsonl"), "kind": "messages"}}
    data = ChatDataModule(
        home=str(home),
        base=str(write_base(home, texts=texts, context=arguments.context)),
        sources=sources,
        context_length=arguments.context,
        batch_size=arguments.batch_size,
        micro_batch_size=arguments.micro_batch_size,
        layout=layout,
        validation_fraction=0.0,
        seed=0,
    )
    data.prepare_data()
    data.setup()
    return data


def conversation(data: ChatDataModule, source: int, number: int) -> dict[str, list[int]]:
    """What a padded loader is fed with: ids and labels, not shifted."""
    store = data._by_number[source]
    ids, flags = store.ids(number).tolist(), store.supervised(number).tolist()
    labels = [id if flag else IGNORE for id, flag in zip(ids, flags, strict=True)]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


class Padded:
    """Micro-batches by a collator of transformers, in the order of the step or grouped by length over many steps."""

    def __init__(self, data: ChatDataModule, *, how: str) -> None:
        self.data, self.how = data, how
        fast = PreTrainedTokenizerFast(tokenizer_file=str(data.prepared.tokenizer / "tokenizer.json"))
        fast.pad_token = "<|end_of_text|>"
        fast.padding_side = "right"
        multiple = {"multiple of 8": 8}.get(how)
        padding = {"context": "max_length"}.get(how, True)
        self.collate = DataCollatorForSeq2Seq(
            fast,
            padding=padding,
            max_length=data.context_length + 1 if how == "context" else None,
            pad_to_multiple_of=multiple,
        )
        self.grouped: list[int] = []
        if how == "grouped":
            lengths = [int(length) for store in data.stores.values() for length in store.lengths]
            generator = torch.Generator().manual_seed(0)
            self.grouped = list(LengthGroupedSampler(data.micro_batch_size, lengths=lengths, generator=generator))

    def __call__(self, step: int) -> Iterator[dict]:
        size, micro = self.data.batch_size, self.data.micro_batch_size
        if self.how == "grouped":
            chosen = [self._numbered(place) for place in self.grouped[step * size : (step + 1) * size]]
        else:
            sources, numbers = self.data._conversations(step * size, size)
            chosen = list(zip(sources.tolist(), numbers.tolist(), strict=True))
        rows = [conversation(self.data, source, number) for source, number in chosen]
        targets = sum(label != IGNORE for row in rows for label in row["labels"])
        for start in range(0, size, micro):
            batch = self.collate(rows[start : start + micro])
            yield {
                "input_ids": batch["input_ids"][:, :-1],
                "labels": batch["labels"][:, 1:],
                "target_tokens": targets,
                "real": sum(len(row["input_ids"]) - 1 for row in rows[start : start + micro]),
            }

    def _numbered(self, place: int) -> tuple[int, int]:
        for source, store in enumerate(self.data.stores.values()):
            if place < len(store):
                return source, place
            place -= len(store)
        raise IndexError(place)


def ours(data: ChatDataModule) -> Callable[[int], Iterator[dict]]:
    def batches(step: int) -> Iterator[dict]:
        for micro_step in range(data.batch_size // data.micro_batch_size):
            batch = data.micro_batch(step, micro_step, rank=0, world_size=1)
            yield {**batch, "real": int(batch["lengths"].sum())}

    return batches


class Side:
    """A network with its optimizer and its batches."""

    def __init__(self, name: str, batches: Callable[[int], Iterator[dict]], config: ModelConfig) -> None:
        self.name, self.batches = name, batches
        self.network = Transformer(config, seed=1)
        self.optimizer = adamw(self.network, learning_rate=1e-4, betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.01)
        self.rates: list[float] = []
        self.cells = self.real = 0
        self.seconds = 0.0

    def step(self, number: int) -> tuple[float, int, float]:
        """Loss, real tokens and tokens per second of one optimizer step, the making of its batches included."""
        started, total, real = time.perf_counter(), 0.0, 0
        for batch in self.batches(number):
            loss = self.network.loss(batch["input_ids"], batch["labels"], document_ids=batch.get("document_ids"))
            (loss / batch["target_tokens"]).backward()
            total += float(loss.detach()) / batch["target_tokens"]
            real += batch["real"]
            self.cells += batch["input_ids"].numel()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.real += real
        took = time.perf_counter() - started
        self.seconds += took
        return total, real, real / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jmed", type=Path, help="folder of JMED-LLM; without it conversations are made")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--context-steps", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--home", type=Path, help="folder for what is made; kept if given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        arguments.home = arguments.home or Path(temporary)
        arguments.home.mkdir(parents=True, exist_ok=True)
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    data = {layout: data_of(arguments, layout) for layout in ("bucketed", "packed")}
    config = config_of(data["packed"].tokenizer.vocab_size, arguments.context)
    print(data["packed"].description(arguments.steps))
    makers = {
        "bucketed": ours(data["bucketed"]),
        "packed": ours(data["packed"]),
        **{how: Padded(data["packed"], how=how) for how in ("longest", "multiple of 8", "grouped", "context")},
    }
    sides = [Side(name, batches, config) for name, batches in makers.items()]
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.__version__}", flush=True)
    for number in range(arguments.steps + 1):  # the first step warms up and is not counted
        losses, tokens = {}, {}
        turn = number % len(sides)
        for side in [*sides[turn:], *sides[:turn]]:
            if side.name == "context" and not 1 <= number <= arguments.context_steps:
                continue
            losses[side.name], tokens[side.name], rate = side.step(number)
            if number:
                side.rates.append(rate)
        print(f"step {number}: " + ", ".join(f"{name} {loss:.5f}" for name, loss in losses.items()), flush=True)
        losses.pop("grouped"), tokens.pop("grouped")
        losses.pop("context", None)  # it takes fewer steps, so its weights are others
        assert len(set(tokens.values())) == 1, tokens
        assert max(losses.values()) - min(losses.values()) < 1e-3 * max(losses.values()), losses
    sides = [side for side in sides if side.rates]
    print(f"{'side':<14} {'tokens/s':>9} {'cells per token':>16}   bucketed is   packed is")
    for side in sides:
        ratios = [
            statistics.median([a / b for a, b in zip(own.rates, side.rates, strict=False)])
            if side.name != "grouped"  # its steps hold other conversations: only all of them together compare
            else own.real / own.seconds / (side.real / side.seconds)
            for own in sides[:2]
        ]
        print(
            f"{side.name:<14} {statistics.median(side.rates):>9,.0f} {side.cells / side.real:>16.3f} "
            f"{ratios[0]:>12.2f}x {ratios[1]:>10.2f}x"
        )


if __name__ == "__main__":
    main()
