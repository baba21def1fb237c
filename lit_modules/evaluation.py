"""Scores on a small fixed set of benchmark items while a model trains, to TensorBoard, with intervals.

The items are drawn once, by a hash of their names, so they are the same at every step and in every run. They are
answered by rank 0 with the weights as they are, through the responder and the corrected scorer that ``python -m
ncvc.evaluate`` uses; the other ranks wait at a barrier. Training does not notice: answers are greedy, no generator
moves, and the network is put back as it was. A set this small shows a trend and no ranking: its interval stands beside
each score.

Costs the answers: weighing the letters of a choice is one pass over its prompt, writing spans one pass a token. They
have to fit into the time that ranks wait for each other (30 minutes, NCCL's own limit is 10). Does not: save answers,
choose checkpoints, or evaluate a whole benchmark.
"""

import contextlib
import functools
import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from tqdm import tqdm

from lit_modules.callbacks import EveryStep, TrainingMonitor
from lit_modules.causal_lm import CausalLM
from lit_modules.watchdog import long_phase
from ncvc.evaluation.answering import AnswerSettings
from ncvc.evaluation.answers import Answer, Key
from ncvc.evaluation.baselines import guessed_spans, guessing
from ncvc.evaluation.item import Item, Task
from ncvc.evaluation.measures import measures_of
from ncvc.evaluation.statistics import bootstrap_interval
from ncvc.evaluation.tasks import load_tasks
from ncvc.model.assistant import Assistant
from ncvc.model.responders import LocalResponder
from ncvc.model.transformer import Transformer

_GUESSES = 50  # of spans, for their chance


class _StopAsked(Exception):
    """A signal asks the run to end: the rest of the items is not answered."""


class InLoopEvaluation(EveryStep):
    """Scores ``items_per_task`` items of each task before the first step, every ``every_n_steps``, and at the end.

    ``directory`` is the benchmarks' folder (null: nothing is evaluated). ``tasks``, ``split``, ``fold``, ``shots`` and
    ``own`` are those of ``python -m ncvc.evaluate``; ``every_n_steps=null`` evaluates at the end only. ``seed`` decides
    which items are drawn. Logged as ``evaluation/<task>/<measure>``, with ``_low`` and ``_high`` (95%) and ``_chance``,
    and the shares ``refused`` and ``failed``. Settings are checked by ``setup``, on every rank.
    """

    def __init__(
        self,
        *,
        directory: str | None,
        tasks: list[str],
        every_n_steps: int | None = None,
        items_per_task: int = 32,
        method: Literal["log_likelihood", "generation"] = "log_likelihood",
        max_new_tokens: int | None = 64,
        batch_size: int = 32,
        split: Literal["paper", "document", "grouped"] = "paper",
        fold: int | None = None,
        shots: int = 0,
        own: dict | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.answering: dict[str, Any] = {"method": method, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
        self.directory, self.every_n_steps = directory, every_n_steps
        self.items_per_task, self.seed = items_per_task, seed
        self._load = functools.partial(load_tasks, tasks, split=split, fold=fold, shots=shots, own=own or {})
        self.settings = AnswerSettings()  # after setup
        self.tasks: list[Task] = []
        self.chances: dict[str, dict[str, float]] = {}
        self.evaluations: list[dict[str, Any]] = []  # of rank 0

    def setup(self, trainer: lightning.Trainer, module: CausalLM, stage: str) -> None:
        """Read the items on every rank, so that what is wrong with them ends all ranks before the first step."""
        if self.directory is None or stage != "fit" or self.tasks:
            return
        for name, value in (("every_n_steps", self.every_n_steps), ("items_per_task", self.items_per_task)):
            if value is not None and value < 1:
                raise ValueError(f"callbacks.evaluation.{name}={value}: must be at least 1.")
        try:
            self.settings = AnswerSettings(**self.answering, too_long="truncate")
            whole = self._load(directory=Path(self.directory).expanduser())
        except (ValueError, OSError) as error:
            raise ValueError(f"callbacks.evaluation: {error}") from error
        self.tasks = [fixed_items(task, count=self.items_per_task, seed=self.seed) for task in whole]
        self.chances = {task.name: chance_of(task) for task in self.tasks}

    def on_train_start(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        super().on_train_start(trainer, module)
        if self.tasks and self.every_n_steps is not None and trainer.global_step == 0:
            self._on_rank_zero(trainer, module)  # within the time that the watchdog leaves the first step

    def on_step(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if self.tasks and (due or trainer.global_step == trainer.max_steps):
            with long_phase(trainer, "evaluation"):
                self._on_rank_zero(trainer, module)

    def rewound(self, *, step: int, keep_spikes_from: int) -> None:
        super().rewound(step=step, keep_spikes_from=keep_spikes_from)
        self.evaluations = [found for found in self.evaluations if found["step"] <= step]

    def _on_rank_zero(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        if trainer.is_global_zero:
            began = time.monotonic()
            self._evaluate(trainer, module)
            for callback in trainer.callbacks:
                if isinstance(callback, TrainingMonitor) and hasattr(callback, "mark"):
                    callback.mark += time.monotonic() - began  # not training time
        trainer.strategy.barrier("evaluation")

    def _evaluate(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        """Answer and score all items once from the current weights (nothing here talks to other ranks)."""
        began, step = time.monotonic(), trainer.global_step
        try:
            with trainer.precision_plugin.forward_context(), torch.compiler.set_stance("force_eager"):
                answers = answered_by(
                    module.network, trainer.datamodule.tokenizer, self.tasks, settings=self.settings, guard=module.guard
                )
        except _StopAsked:
            return
        except (ValueError, torch.OutOfMemoryError) as error:
            tqdm.write(f"note: step {step}: the evaluation failed, training goes on: {error}")
            return
        figures: dict[str, float] = {}
        told = []
        for task in self.tasks:
            scores, words = score_in_loop(task, answers, chance=self.chances[task.name], seed=self.seed)
            figures |= {f"evaluation/{task.name}/{name}": value for name, value in scores.items()}
            told.append(words)
        self.evaluations.append({"step": step, **figures})
        if trainer.logger is not None:
            trainer.logger.log_metrics(figures, step=step)
        tqdm.write(f"step {step}: {'; '.join(told)} ({time.monotonic() - began:.1f} s)")


def fixed_items(task: Task, *, count: int, seed: int) -> Task:
    """``count`` items of ``task`` (all, if it has fewer), chosen by a hash of their names, in the task's order."""

    def place(item: Item) -> bytes:
        return hashlib.blake2b(f"{seed}\0{task.name}\0{item.id}".encode(), digest_size=16).digest()

    chosen = {item.id for item in sorted(task.items, key=place)[:count]}
    return replace(task, items=tuple(item for item in task.items if item.id in chosen))


def chance_of(task: Task) -> dict[str, float]:
    """What guessing scores, by measure."""
    if task.items[0].kind == "spans":
        drawn = [measures_of(task, task.items, guessed_spans(task.items, seed=seed)) for seed in range(_GUESSES)]
        return {"overlap_f1": math.fsum(each.headline.value for each in drawn) / _GUESSES}
    found = guessing(task, task.items)
    if task.family == "igakuqa":
        return {"percent": 100 * found.points / found.total if found.total else math.nan}
    return {"accuracy": found.accuracy, **({"kappa": 0.0} if task.kappa else {})}


def answered_by(
    network: Transformer, tokenizer: Any, tasks: Sequence[Task], *, settings: AnswerSettings, guard: Any
) -> dict[Key, Answer]:
    """The network's answers to all items, with generators and modes left as they were; ``guard`` may ask to stop."""
    answers: dict[Key, Answer] = {}

    def keep(answer: Answer) -> None:
        answers[answer.key] = answer
        if guard.stop_requested:
            raise _StopAsked

    with untouched(network):
        responder = LocalResponder(Assistant(network, tokenizer, name="in training"))
        responder.respond([item for task in tasks for item in task.items], settings=settings, keep=keep)
    return answers


@contextlib.contextmanager
def untouched(network: torch.nn.Module) -> Iterator[None]:
    """Generators and every layer's mode are afterwards what they were."""
    modes = [(layer, layer.training) for layer in network.modules()]
    device = next(network.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for layer, training in modes:
                layer.training = training


def score_in_loop(
    task: Task, answers: dict[Key, Answer], *, chance: dict[str, float], seed: int
) -> tuple[dict[str, float], str]:
    """The figures of one task, by name, and a line for the terminal. Items that failed are left out, and counted."""
    given = [(item, answers[task.name, item.id].answer) for item in task.items]
    read = [(item, text) for item, text in given if text is not None]
    failed = len(given) - len(read)
    figures = {"failed": failed / len(given)}
    if not read:
        why = next(answer.failed for answer in answers.values() if answer.task == task.name)
        return figures, f"{task.name}: no item could be asked ({why})"
    measures = measures_of(task, [item for item, _ in read], [text for _, text in read])
    figures["refused"] = sum(measures.refused) / len(read)
    names = [measures.metric, *(["accuracy"] if "accuracy" in measures.by_scorer["corrected"] else [])]
    for name in dict.fromkeys(names):
        interval = bootstrap_interval(measures.by_scorer["corrected"][name], seed=seed)
        ends = {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        ends[f"{name}_chance"] = chance.get(name, math.nan)
        figures |= {key: value for key, value in ends.items() if math.isfinite(value)}
    value, low, high = (figures.get(f"{measures.metric}{end}", math.nan) for end in ("", "_low", "_high"))
    beside = f"chance {chance.get(measures.metric, math.nan):.3g}"
    more = f", {failed} of {len(given)} failed" if failed else ""
    return figures, f"{task.name} {measures.metric} {value:.3f} [{low:.3f}, {high:.3f}], {beside}{more}"
