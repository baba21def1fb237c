"""All of JMED-LLM and one IgakuQA year: our answering beside the published evaluator's way, on the same weights.

    python tests/benchmarks/evaluation.py --data FOLDER

The published evaluator asks one prompt at a time through transformers' ``generate`` (its limit: 512 new tokens for
every task); here that is ArceeForCausalLM with our weights, greedy, on a sample of the items of each task, scaled to
all of them. Both take turns in one process, so that a slow moment of a shared machine hits both; reported is the median
of the turns. Two ways to end an answer, the same for both:

- ``gold``: after as many tokens as the right answer has, as a tuned model does
- ``limit``: at 512 tokens, as an untuned model does (random weights hardly ever end); on a sample for both

The weights are random, which changes nothing about the time. The tokenizer is trained on the questions. ``--memory``
answers once in this process, ours alone, and prints its peak (with ``--most N`` the N longest items of each task).
Without ``--data`` the questions are made up, of the lengths that the benchmarks have.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from generation import FIELDS, SIZES, arcee

from ncvc.chat import Message, with_chat_tokens
from ncvc.corpus.cleaning import Cleaner
from ncvc.evaluation.answering import AnswerSettings, answer_tasks
from ncvc.evaluation.item import Item, Task
from ncvc.evaluation.spans import write_spans
from ncvc.evaluation.tasks import load_tasks
from ncvc.model.assistant import Assistant
from ncvc.model.responders import LocalResponder
from ncvc.model.transformer import ModelConfig, Transformer
from ncvc.morphology import build_analyzer
from ncvc.tokenizer import Tokenizer, segment_text

# characters of a question: median, and about how many times longer or shorter they are
LENGTHS = {"jmmlu_med": (170, 2), "crade": (420, 1.5), "rrtnm": (420, 1.5), "smdis": (140, 1.3), "jcsts": (560, 1.2),
           "mrner_disease": (480, 1.6), "mrner_medicine": (480, 1.6), "nrner": (180, 1.5)}  # fmt: skip
WORDS = [
    "発熱",
    "咳嗽",
    "右下肺野",
    "浸潤影",
    "認める",
    "患者",
    "経過",
    "外来",
    "血圧",
    "上昇",
    "を",
    "に",
    "の",
    "で",
    "。",
]


@dataclass(frozen=True, kw_only=True)
class AsLongAsGold(AnswerSettings):
    """Answers as long as the right one: ``lengths`` by (task, id)."""

    lengths: dict

    def longest(self, item: Item, *, context_length: int | None) -> int:
        return self.lengths[item.task, item.id]


def made_up() -> list[Task]:
    """800 rows and 400 questions of about the real lengths."""
    chance, tasks = random.Random(1), []

    def text(median: float, spread: float) -> str:
        wanted, words = median * spread ** chance.uniform(-1, 1), []
        while sum(map(len, words)) < wanted:
            words.append(chance.choice(WORDS))
        return "".join(words)

    for name, (median, spread) in {**LENGTHS, "igakuqa_2018": (260, 2.5)}.items():
        items = []
        for number in range(400 if name == "igakuqa_2018" else 100):
            asked = text(median, spread)
            common = {"id": str(number), "task": name, "messages": (Message("user", asked),)}
            if name.endswith(("disease", "medicine", "nrner")):
                gold = tuple(sorted({asked[at : at + 6] for at in range(5, len(asked) - 6, 60)}))
                items.append(Item(**common, kind="spans", gold=gold, passage=asked))
            else:
                items.append(Item(**common, kind="choice", gold=("A",), letters=tuple("ABCDE"), options=tuple("12345")))
        tasks.append(Task(name=name, family="own", items=tuple(items)))
    return tasks


def gold_text(item: Item) -> str:
    return write_spans(list(item.gold)) if item.kind == "spans" else ",".join(item.gold)


def assistant_of(tasks: list[Task], size: str) -> Assistant:
    """Random weights of this size and a tokenizer of the questions' words."""
    cleaner, analyzer = Cleaner(), build_analyzer()
    texts = {message.content for task in tasks for item in task.items for message in item.messages}
    texts |= {gold_text(item) for task in tasks for item in task.items}
    shape = dict(zip(FIELDS, SIZES[size], strict=True))
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # the text is small for its vocabulary
        tokenizer = Tokenizer.train(
            [segment_text(cleaner(text), analyzer=analyzer) for text in sorted(texts)],
            vocab_size=shape["vocab_size"],
            cleaner=cleaner,
            analyzer=analyzer,
            progress=False,
        )
    tokenizer = with_chat_tokens(tokenizer)
    model = Transformer(ModelConfig(context_length=2048, **{**shape, "vocab_size": tokenizer.vocab_size}), seed=1)
    with torch.no_grad():
        model.head.weight.mul_(10)  # greedy choices are not ties
    return Assistant(model, tokenizer, name=size)


def answer_ours(responder: LocalResponder, tasks: list[Task], settings: AnswerSettings) -> float:
    """Seconds for all items, tokenizing and saving included."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        found = answer_tasks(tasks, responder, settings=settings, path=Path(folder) / "answers.jsonl")
        seconds = time.perf_counter() - begun
    assert all(answer.failed is None for answer in found.values()), next(a.failed for a in found.values() if a.failed)
    return seconds


@torch.inference_mode()
def answer_theirs(peer: torch.nn.Module, assistant: Assistant, items: list[Item], settings: AnswerSettings) -> float:
    """Seconds for the items, one at a time, tokenizing included."""
    tokenizer, begun = assistant.tokenizer, time.perf_counter()
    for item in items:
        ids = torch.tensor([assistant.chat_prompt(item.messages, max_new_tokens=2)])
        room = min(settings.longest(item, context_length=2048), 2048 - ids.size(1))
        found = peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=room,
            do_sample=False,
            eos_token_id=tokenizer.end_id,
            pad_token_id=tokenizer.end_id,
        )
        tokenizer.decode(found[0, ids.size(1) :].tolist())
    return time.perf_counter() - begun


def stripe(tasks: list[Task], turn: int, turns: int, *, most: int | None = None) -> list[Task]:
    """Every ``turns``-th item of each task in the order of length; at most ``most`` of them, evenly."""
    found = []
    for task in tasks:
        ordered = sorted(task.items, key=lambda item: (len(item.messages[-1].content), item.id))[turn::turns]
        if most is not None and len(ordered) > most:
            ordered = [ordered[(2 * place + 1) * len(ordered) // (2 * most)] for place in range(most)]
        found.append(Task(name=task.name, family=task.family, items=tuple(ordered), kappa=task.kappa))
    return found


def longest(task: Task, most: int | None) -> Task:
    """The ``most`` longest items of a task, which make the peak; all of them without a number."""
    items = sorted(task.items, key=lambda item: (-len(item.messages[-1].content), item.id))[:most]
    return Task(name=task.name, family=task.family, items=tuple(items), kappa=task.kappa)


def seconds_for_all(theirs: dict[str, float], counts: dict[str, int], sampled: dict[str, int]) -> float:
    """The sample's seconds of each task, scaled to all its items."""
    return sum(theirs[name] * counts[name] / sampled[name] for name in theirs)


def compare(
    assistant: Assistant, tasks: list[Task], settings: AnswerSettings, *, turns: int, sample: int, ours_most: int | None
) -> dict[str, object]:
    """Turn by turn: ours on a stripe of the items, theirs on a sample of that stripe."""
    responder, peer = LocalResponder(assistant), arcee(assistant.model)
    answer_theirs(peer, assistant, [tasks[0].items[0]], AnswerSettings(max_new_tokens=4))
    ratios, ours_seconds, theirs_seconds = [], 0.0, 0.0
    for turn in range(turns):
        asked = stripe(tasks, turn, turns, most=ours_most)
        counts = {task.name: len(task.items) for task in asked}
        ours = answer_ours(responder, asked, settings)
        by_task, sampled = defaultdict(float), {}
        for task in stripe(tasks, turn, turns, most=sample):
            sampled[task.name] = len(task.items)
            by_task[task.name] = answer_theirs(peer, assistant, list(task.items), settings)
        theirs = seconds_for_all(by_task, counts, sampled)
        ratios.append(theirs / ours)
        ours_seconds, theirs_seconds = ours_seconds + ours, theirs_seconds + theirs
        print(f"  turn {turn + 1}: ours {ours:.1f} s, theirs {theirs:.1f} s (scaled), {ratios[-1]:.1f}x", flush=True)
    return {"ratio": round(statistics.median(ratios), 2), "ours_s": round(ours_seconds, 1),
            "theirs_scaled_s": round(theirs_seconds, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with jmed_llm and igakuqa; made-up questions without it")
    parser.add_argument("--size", choices=SIZES, default="50M")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--sample", type=int, default=2, help="items of each task and turn that the peer answers")
    parser.add_argument("--most", type=int, help="items of each task and turn that ours answers; all without it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ends", choices=["gold", "limit"], nargs="+", default=["gold", "limit"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--memory", action="store_true", help="answer everything, ours alone, and print the peak")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tasks = load_tasks(["jmed_llm", "igakuqa_2018"], directory=arguments.data) if arguments.data else made_up()
    assistant = assistant_of(tasks, arguments.size)
    encode = assistant.tokenizer.encode
    lengths = {(item.task, item.id): len(encode(gold_text(item))) + 1 for task in tasks for item in task.items}
    gold = AsLongAsGold(batch_size=arguments.batch_size, lengths=lengths)
    weights = sum(parameter.numel() * 4 for parameter in assistant.model.parameters())
    if arguments.memory:
        asked = [longest(task, arguments.most) for task in tasks]
        for settings in (gold, AnswerSettings(method="log_likelihood", max_new_tokens=8)):
            seconds = answer_ours(LocalResponder(assistant), asked, settings)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            found = {"peak_MiB": peak >> 20, "bound_MiB": (2 * weights + (2 << 30)) >> 20}
            print(json.dumps({"method": settings.method, "seconds": round(seconds, 1), **found}), flush=True)
        return
    prompts = [len(assistant.chat_prompt(item.messages, max_new_tokens=2)) for task in tasks for item in task.items]
    result: dict[str, object] = {
        "parameters": sum(parameter.numel() for parameter in assistant.model.parameters()),
        "items": len(prompts),
        "median_prompt_tokens": statistics.median(prompts),
        "threads": arguments.threads,
    }
    for end in arguments.ends:
        print(end, flush=True)
        if end == "gold":
            result[end] = compare(
                assistant, tasks, gold, turns=arguments.turns, sample=arguments.sample, ours_most=None
            )
        else:
            settings = AnswerSettings(max_new_tokens=512, batch_size=arguments.batch_size)
            result[end] = compare(
                assistant, tasks, settings, turns=2, sample=1, ours_most=min(arguments.most or 12, 12)
            )
    memory = [sys.executable, __file__, *sys.argv[1:], "--memory"]
    child = subprocess.run(memory, capture_output=True, text=True, check=True)
    result["memory"] = json.loads(child.stdout.strip().splitlines()[-1])
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
