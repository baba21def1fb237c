"""From saved answers to ``scores.json``: both scorers, intervals, chance, baselines, leak and verdict for every task.

Repeatable: equal tasks and answers give equal scores, whatever order the answers came in, and no model is needed. An
item whose answer failed (the server did not reply, the prompt did not fit) or is missing is neither right nor wrong:
scores are over the answered items, the record says how many were not, and there is no verdict until all are. Everything
that an answer is held against (chance, constants, baselines) is scored on the same items, by the same scorers.

Costs: 2 s for the 800 rows of JMED-LLM when the baselines are kept already, a minute more when they have to be trained;
100,000 answers 15 s. Does not: ask, or print.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ncvc.evaluation.answers import Answer, Key
from ncvc.evaluation.baselines import (
    LONGEST_OPTION,
    SPAN_GUESSES,
    Outputs,
    constant_answer,
    guessed_spans,
    guessing,
    longest_options,
    trained_baselines,
)
from ncvc.evaluation.item import Item, Task
from ncvc.evaluation.jmed_files import SPAN_TASKS, TASKS
from ncvc.evaluation.jmed_llm import Example, Split, training_conversations
from ncvc.evaluation.leaks import Leak, Seen, leak_status
from ncvc.evaluation.measures import Measures, headline, measures_of
from ncvc.evaluation.sheet import FORMAT
from ncvc.evaluation.statistics import (
    RESAMPLES,
    Interval,
    Measure,
    bootstrap_intervals,
    paired_test,
    plain,
)
from ncvc.evaluation.tasks import benchmark_folder
from ncvc.evaluation.verdicts import Facts, Rival, comparison, verdict

_HELD = ("as_published", "corrected", "interval", "chance", "majority", "baselines")


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How answers are scored: ``resamples`` of the intervals and their ``seed``; whether ``baselines`` are trained.

    ``benchmarks`` is the benchmarks' folder, as of `load_tasks`, from whose training rows baselines learn and leaks are
    counted (None: neither); ``home`` keeps trained baselines (None: nothing is kept); ``certificate`` is the folder of
    the contamination certificate of the model's corpus, if there is one.
    """

    resamples: int = RESAMPLES
    seed: int = 0
    baselines: bool = True
    benchmarks: Path | None = None
    home: Path | None = None
    certificate: Path | None = None


def score_answers(
    tasks: Sequence[Task],
    answers: Mapping[Key, Answer],
    *,
    model: Mapping[str, Any] | None = None,
    split: Split = "paper",
    fold: int | None = None,
    shots: int = 0,
    method: str = "generation",
    seen: Mapping[str, Seen] | None = None,
    settings: ScoreSettings | None = None,
    command: str = "",
    tell: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """The scores of ``tasks``, plain data as in ``scores.json``; ``answers`` of other tasks are passed over.

    ``seen`` says by task which items the model was trained on (absent: unknown); ``tell`` hears of what takes long.
    ``ValueError`` for answers to other prompts than the tasks' and for two tasks of one name, else as of the files.
    """
    chosen = settings or ScoreSettings()
    names = [task.name for task in tasks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"the task {', '.join(sorted(twice))} is named twice; scores need a name for each.")
    rows = _Training(chosen.benchmarks, split, fold, names)
    certificate = None
    if chosen.certificate is not None:
        from ncvc.corpus.contamination.certificate import Certificate

        certificate = Certificate.open(chosen.certificate)
    records = []
    for task in tasks:
        documents = rows.documents if task.family == "jmed_llm" else None
        found = None if seen is None else seen.get(task.name)
        leak = leak_status(task, documents=documents, split=split, fold=fold, seen=found, certificate=certificate)
        records.append(score_task(task, answers, training=rows.of(task), leak=leak, settings=chosen, tell=tell))
    return {
        "format": FORMAT,
        "model": dict(model or {}),
        "split": split,
        "fold": fold,
        "shots": shots,
        "method": method,
        "tasks": records,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }


class _Training:
    """The training rows of a split, read once and only if a task of JMED-LLM asks."""

    def __init__(self, directory: Path | None, split: Split, fold: int | None, names: Sequence[str]) -> None:
        self._directory, self._split, self._fold = directory, split, fold
        self._names = [name for name in names if name in TASKS]

    @functools.cached_property
    def rows(self) -> list[Example] | None:
        """All rows, of the scored tasks alone where files of the others are missing; None without a folder."""
        if self._directory is None:
            return None
        folder = benchmark_folder(self._directory, "jmed_llm")
        try:
            return training_conversations(folder, split=self._split, fold=self._fold)
        except FileNotFoundError:
            return training_conversations(folder, split=self._split, fold=self._fold, tasks=self._names)

    @functools.cached_property
    def documents(self) -> frozenset[str] | None:
        """The documents of all rows."""
        return None if self.rows is None else frozenset(row.document for row in self.rows)

    def of(self, task: Task) -> list[Example]:
        """The rows that a baseline of ``task`` learns from."""
        if task.family != "jmed_llm" or self.rows is None:
            return []
        wanted = SPAN_TASKS if task.items[0].kind == "spans" else (task.name,)
        return [row for row in self.rows if row.task in wanted]


def score_task(
    task: Task,
    answers: Mapping[Key, Answer],
    *,
    training: Sequence[Example] = (),
    leak: Leak,
    settings: ScoreSettings,
    tell: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """The record of one task; ``training`` are the rows that baselines learn from."""
    given = [answers.get((task.name, item.id)) for item in task.items]
    _check_prompts(task, given)
    places = [place for place, answer in enumerate(given) if answer is not None and answer.answer is not None]
    failed = sum(answer is not None and answer.answer is None for answer in given)
    record: dict[str, Any] = {
        "task": task.name,
        "family": task.family,
        "kind": task.items[0].kind,
        "metric": headline(task),
        "items": len(task.items),
        "answered": len(places),
        "refused": 0,
        "failed": failed,
        "missing": len(task.items) - len(places) - failed,
    }
    held: dict[str, Any] = {**{name: {} for name in _HELD}, "unread": None}
    facts = Facts(items=len(task.items), answered=0, value=math.nan, low=math.nan, high=math.nan, chance=math.nan)
    if places:
        outputs = [answer.answer for answer in given if answer is not None and answer.answer is not None]
        rivals, not_run = _rivals(task, training, settings, tell)
        found, facts = _held_against(task, places, outputs, rivals, settings)
        held.update(found)
        record["refused"] = held.pop("refused")  # beside the other counts
        held["unread"], unread = _unread(task, places, outputs, rivals, leak, settings)
        if unread is not None:
            unread = replace(unread, items=unread.answered, not_run=not_run, trained_share=0.0)
        facts = replace(facts, not_run=not_run, trained_share=leak.share, at_least=leak.at_least, unread=unread)
    return {**record, **held, "leak": leak.to_dict(), "verdict": verdict(facts), "source": dict(task.source)}


def _check_prompts(task: Task, given: Sequence[Answer | None]) -> None:
    other = [
        item.id
        for item, answer in zip(task.items, given, strict=True)
        if answer is not None and answer.prompt_sha256 != item.prompt_sha256
    ]
    if other:
        raise ValueError(
            f"{task.name}: {len(other):,} of the saved answers are to another prompt than the item's now ({other[0]}, "
            "...): the benchmark's files, the split or the number of worked questions changed. Score with those that "
            "the answers were given to, or answer again."
        )


def _rivals(
    task: Task, training: Sequence[Example], settings: ScoreSettings, tell: Callable[[str], object]
) -> tuple[dict[str, Outputs], str | None]:
    """What every item is answered by the constant answer (first) and by each baseline; why trained ones lack."""
    name, outputs = constant_answer(task.items, [row for row in training if row.task == task.name])
    rivals = {name: outputs}
    options = longest_options(task.items)
    if not training and options is not None:
        rivals[LONGEST_OPTION] = options
    if task.family != "jmed_llm":
        return rivals, None  # there is nothing to train on
    if not settings.baselines:
        return rivals, "scoring.baselines=false"
    if not training:
        return rivals, "there are no training rows"
    try:
        return {**rivals, **trained_baselines(task, training, home=settings.home, tell=tell)}, None
    except ModuleNotFoundError as error:
        return rivals, str(error)


def _held_against(
    task: Task,
    places: Sequence[int],
    outputs: Sequence[str],
    rivals: Mapping[str, Outputs],
    settings: ScoreSettings,
) -> tuple[dict[str, Any], Facts]:
    """Scores, intervals, chance, constant and baselines of the answered items, and the facts for a verdict."""
    items = [task.items[place] for place in places]
    model = measures_of(task, items, outputs)
    groups = _documents(task, items)
    intervals = _intervals(model.by_scorer, groups=None, settings=settings)
    over_documents = None if groups is None else _intervals(model.by_scorer, groups=groups, settings=settings)
    chance = _chance(task, items)
    against, found = [], {}
    for name, answers in rivals.items():
        rival = measures_of(task, items, [answers[place] for place in places])
        test = paired_test(rival.headline, model.headline, groups=groups, seed=settings.seed)
        against.append(Rival(name=name, value=rival.headline.value, p_value=test.p_value))
        found[name] = {**_scores(rival), "paired": test.to_dict()}
    constant = against[0]
    ends = [each["corrected"][model.metric] for each in (intervals, over_documents) if each is not None]
    facts = Facts(
        items=len(task.items),
        answered=len(items),
        value=model.headline.value,
        low=min(interval.low for interval in ends),
        high=max(interval.high for interval in ends),
        chance=chance["corrected"].get(model.metric, math.nan),
        constant=constant,
        baselines=tuple(against[1:]),
    )
    record = {
        **_scores(model),
        "refused": sum(model.refused),
        "interval": {**_told(intervals), "documents": None if over_documents is None else _told(over_documents)},
        "chance": {**chance["corrected"], **{name: value for name, value in chance.items() if name != "corrected"}},
        "majority": {"name": constant.name, **found.pop(constant.name)},
        "baselines": found,
    }
    return record, facts


def _unread(
    task: Task,
    places: Sequence[int],
    outputs: Sequence[str],
    rivals: Mapping[str, Outputs],
    leak: Leak,
    settings: ScoreSettings,
) -> tuple[dict[str, Any] | None, Facts | None]:
    """The score of the answered items that were not trained on, and its facts; None where all were, or none."""
    kept = [number for number, place in enumerate(places) if task.items[place].id not in leak.trained]
    if not kept or len(kept) == len(places):
        return None, None
    found, facts = _held_against(task, [places[n] for n in kept], [outputs[n] for n in kept], rivals, settings)
    metric = headline(task)
    ends = [plain(facts.low), plain(facts.high)]
    return {"items": len(kept), "metric": metric, "value": found["corrected"][metric], "interval": ends}, facts


def _scores(measures: Measures) -> dict[str, Any]:
    return {scorer: measures.scores(scorer) for scorer in ("as_published", "corrected")}


def _documents(task: Task, items: Sequence[Item]) -> list[str] | None:
    """The document of each item where several items are about one; IgakuQA's blocks are none."""
    groups = [item.group or f"item {item.id}" for item in items]
    return groups if task.family != "igakuqa" and len(set(groups)) < len(groups) else None


def _intervals(
    by_scorer: Mapping[str, Mapping[str, Measure]], *, groups: Sequence[str] | None, settings: ScoreSettings
) -> dict[str, dict[str, Interval]]:
    whole = {(scorer, name): measure for scorer, found in by_scorer.items() for name, measure in found.items()}
    drawn = bootstrap_intervals(whole, groups=groups, seed=settings.seed, resamples=settings.resamples)
    return {scorer: {name: drawn[scorer, name] for name in found} for scorer, found in by_scorer.items()}


def _told(intervals: Mapping[str, Mapping[str, Interval]]) -> dict[str, Any]:
    """Ends by scorer and measure, with what they are of."""
    one = next(iter(intervals["corrected"].values()))
    ends = {s: {n: [plain(i.low), plain(i.high)] for n, i in found.items()} for s, found in intervals.items()}
    return {**ends, "level": one.level, "resamples": one.resamples, "over": one.over, "units": one.units}


def _chance(task: Task, items: Sequence[Item]) -> dict[str, Any]:
    """What guessing scores: {"corrected": by measure, "range": of 95% of guessers, "how": in words}."""
    if items[0].kind == "spans":
        seeds = range(max(1, SPAN_GUESSES // len(items)))
        drawn = [measures_of(task, items, guessed_spans(items, seed=seed)).by_scorer["corrected"] for seed in seeds]
        means = {name: math.fsum(each[name].value for each in drawn) / len(drawn) for name in drawn[0]}
        return {
            "corrected": means,
            "range": {},
            "how": "as many spans as are right, of their lengths, at random places",
        }
    found = guessing(task, items)
    if task.family != "igakuqa":
        means = {"accuracy": found.accuracy, **({"kappa": 0.0} if task.kappa else {})}
        spread = {"accuracy": list(found.accuracy_range)}
        return {"corrected": means, "range": spread, "how": "a letter, uniformly"}
    total = found.total or math.nan
    means = {"points": found.points, "percent": plain(100 * found.points / total), "accuracy": found.accuracy}
    spread = {
        "points": list(found.points_range),
        "percent": [plain(100 * end / total) for end in found.points_range],
        "accuracy": list(found.accuracy_range),
    }
    return {"corrected": means, "range": spread, "how": "the right number of letters, uniformly; no number is guessed"}


# --- two models
def compare_scores(
    task: Task,
    first: Mapping[Key, Answer],
    second: Mapping[Key, Answer],
    *,
    names: tuple[str, str] = ("the first", "the second"),
    leaks: tuple[Leak, Leak] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The paired test of two models on the items that both answered: metric, items, both scores, test, words.

    ``leaks`` say what each was trained on (absent: unknown). ``ValueError`` when no item was answered by both.
    """
    sides = []
    for answers in (first, second):
        given = [answers.get((task.name, item.id)) for item in task.items]
        _check_prompts(task, given)
        sides.append([None if answer is None else answer.answer for answer in given])
    places = [p for p in range(len(task.items)) if sides[0][p] is not None and sides[1][p] is not None]
    if not places:
        raise ValueError(f"{task.name}: no item was answered by both models; nothing can be compared.")
    items = [task.items[place] for place in places]
    one, two = (measures_of(task, items, [side[place] or "" for place in places]) for side in sides)
    test = paired_test(one.headline, two.headline, groups=_documents(task, items), seed=seed)
    shares = (None, None) if leaks is None else (leaks[0].share, leaks[1].share)
    return {
        "task": task.name,
        "metric": one.metric,
        "items": len(items),
        "first": plain(one.headline.value),
        "second": plain(two.headline.value),
        "test": test.to_dict(),
        "words": comparison(*names, test, first_share=shares[0], second_share=shares[1]),
    }
