"""An evaluation's folder: ``evaluation.json`` (who was asked what, and how), ``answers.jsonl``, ``scores.json``.

Answering fills ``answers.jsonl`` and may be stopped and repeated; scoring reads it and can be repeated without a model.
A folder belongs to one model, method, split and way of answering: anything else is refused by name. Tasks may be added:
their answers join the others, and the scores are of all tasks asked so far. Does not: open models, or print.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ncvc.evaluation.answering import AnswerSettings, Responder, answer_tasks, current_answers
from ncvc.evaluation.answers import Answer, Key, read_answers
from ncvc.evaluation.item import Task
from ncvc.evaluation.scoring import score_answers
from ncvc.evaluation.seen_items import seen_items
from ncvc.evaluation.sheet import SCORES, sheet_text, write_scores
from ncvc.evaluation_settings import BenchmarkSettings, EvaluateSettings
from ncvc.resuming import RunStopped
from ncvc.settings import settings_from
from ncvc.storage import hash_json, write_json

FORMAT = 1
RECORD, ANSWERS = "evaluation.json", "answers.jsonl"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What ``evaluation.json`` says: ``identity`` decides the answers, ``model`` describes who gave them."""

    folder: Path
    identity: Mapping[str, Any]
    model: Mapping[str, Any]
    benchmark: BenchmarkSettings
    command: str

    @property
    def method(self) -> str:
        """generation or log_likelihood."""
        return str(self.identity["answering"]["method"])


def evaluation_of(
    responder: Responder,
    benchmark: BenchmarkSettings,
    *,
    answering: AnswerSettings,
    home: Path,
    output: Path | None,
    command: str,
) -> Evaluation:
    """The evaluation of ``responder`` in its folder, taken up where there is one already.

    ``ValueError`` when the folder ``output`` holds another evaluation,
    with what differs.
    """
    identity = {
        "model": responder.identity,
        "answering": answering.identity,
        "split": benchmark.split,
        "fold": benchmark.fold,
        "shots": benchmark.shots,
    }
    identity = json.loads(json.dumps(identity))
    split = benchmark.split if benchmark.fold is None else f"{benchmark.split}{benchmark.fold}"
    leaf = f"{answering.method}-{split}-{benchmark.shots}shot-{hash_json(identity)[:12]}"
    folder = output or Path(home).expanduser() / "scores" / _file_name(responder.name) / leaf
    tasks = benchmark.tasks
    if (folder / RECORD).is_file():
        known = read_evaluation(folder)
        if other := _differences(known.identity, identity):
            raise ValueError(
                f"output={folder} holds the answers of another evaluation: {'; '.join(other)}. Set another output, or "
                "leave it out, and each gets a folder of its own."
            )
        tasks = tuple(dict.fromkeys([*known.benchmark.tasks, *tasks]))
        benchmark = replace(benchmark, own={**known.benchmark.own, **benchmark.own})
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"output={folder} is in the way: it was not made by ncvc.evaluate. Set another folder.")
    own = {name: _absolute(values) for name, values in benchmark.own.items()}
    directory = str(Path(benchmark.directory).expanduser().absolute())
    whole = replace(benchmark, tasks=tasks, own=own, directory=directory)
    return Evaluation(folder=folder, identity=identity, model=responder.record, benchmark=whole, command=command)


def answer(
    evaluation: Evaluation,
    responder: Responder,
    tasks: list[Task],
    *,
    settings: AnswerSettings,
    tell: Callable[[str], object],
) -> dict[Key, Answer]:
    """Ask what has no answer yet, of ``tasks``; the answers to them are in the folder and returned."""
    _write(evaluation)
    return answer_tasks(tasks, responder, settings=settings, path=evaluation.folder / ANSWERS, tell=tell)


def score(
    evaluation: Evaluation,
    settings: EvaluateSettings,
    *,
    tell: Callable[[str], object],
    tasks: Sequence[Task] | None = None,
) -> dict[str, Any]:
    """Score the saved answers of all tasks of the folder; the content of ``scores.json``, which is written.

    The benchmarks are read where they lay when the answers were given, or else where ``settings`` say; ``tasks`` are
    those of the folder where they have been read already.
    """
    benchmark = evaluation.benchmark
    if not Path(benchmark.directory).is_dir():
        benchmark = replace(benchmark, directory=settings.benchmark.directory)
    tasks = benchmark.load() if tasks is None else tasks
    saved = read_answers(evaluation.folder / ANSWERS, tell=tell)
    answers = current_answers(tasks, saved)
    asked = {(task.name, item.id) for task in tasks for item in task.items}
    if stale := len([key for key in saved if key in asked and key not in answers]):
        tell(f"{stale:,} answers are to questions that read differently now; they count as not asked yet")
    scores = score_answers(
        tasks,
        answers,
        model=evaluation.model,
        split=benchmark.split,
        fold=benchmark.fold,
        shots=benchmark.shots,
        method=evaluation.method,
        seen=seen_items(tasks, model=evaluation.model, home=Path(settings.home).expanduser(), tell=tell),
        settings=settings.score_settings(benchmarks=Path(benchmark.directory).expanduser()),
        command=evaluation.command,
        tell=tell,
    )
    write_scores(evaluation.folder / SCORES, scores)
    return scores


def evaluate_responder(
    responder: Responder,
    tasks: Sequence[Task],
    settings: EvaluateSettings,
    *,
    command: str,
    tell: Callable[[str], object],
    write: Callable[[str], object],
) -> list[Path]:
    """Answer and score with every method of ``settings``, a folder each; ``write`` gets the sheets.

    ``RunStopped`` on Ctrl-C, with what is there and how to go on.
    """
    for method in settings.methods:
        responder.check(settings.answering(method))
    folders = []
    for method in settings.methods:
        evaluation = evaluation_of(
            responder,
            settings.benchmark,
            answering=settings.answering(method),
            home=Path(settings.home),
            output=None if settings.output is None else Path(settings.output).expanduser(),
            command=command,
        )
        tell(f"answers {evaluation.folder / ANSWERS}")
        try:
            answer(evaluation, responder, list(tasks), settings=settings.answering(method), tell=tell)
        except KeyboardInterrupt:
            raise RunStopped(
                f"stopped: what was answered is in {evaluation.folder}. Repeat the command to go on.", exit_code=130
            ) from None
        known = tasks if evaluation.benchmark.tasks == settings.tasks else None
        write(sheet_text(score(evaluation, settings, tell=tell, tasks=known)))
        folders.append(evaluation.folder)
    return folders


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation of a folder; ``FileNotFoundError`` or ``ValueError`` when it holds none."""
    path = Path(folder) / RECORD
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no evaluation (no {RECORD}); name a folder that python -m ncvc.evaluate wrote, such as "
            ".ncvc/scores/<model>/<settings>."
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r} is not the {FORMAT} that this version reads")
        benchmark = settings_from(BenchmarkSettings, record["benchmark"], path="benchmark")
        return Evaluation(
            folder=Path(folder),
            identity=record["identity"],
            model=record["model"],
            benchmark=benchmark,
            command=str(record["command"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no evaluation's record ({error}); restore it, or evaluate anew.") from error


def _write(evaluation: Evaluation) -> None:
    benchmark = evaluation.benchmark
    record = {
        "format": FORMAT,
        "identity": evaluation.identity,
        "model": evaluation.model,
        "benchmark": {
            "directory": benchmark.directory,
            "tasks": list(benchmark.tasks),
            "own": benchmark.own,
            "split": benchmark.split,
            "fold": benchmark.fold,
            "shots": benchmark.shots,
        },
        "command": evaluation.command,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    evaluation.folder.mkdir(parents=True, exist_ok=True)
    write_json(evaluation.folder / RECORD, record)


def _absolute(values: Any) -> Any:
    """Settings of a task of one's own with the whole path of its file."""
    if isinstance(values, Mapping) and isinstance(values.get("path"), str):
        return {**values, "path": str(Path(values["path"]).expanduser().absolute())}
    return values


def _differences(known: Any, asked: Any, path: str = "") -> list[str]:
    """Where two identities differ, as ``name was ..., is ...``."""
    if isinstance(known, Mapping) and isinstance(asked, Mapping):
        found = []
        for name in dict.fromkeys([*known, *asked]):
            where = f"{path}.{name}" if path else str(name)
            found += _differences(known.get(name), asked.get(name), where.removeprefix("answering."))
        return found
    return [] if known == asked else [f"{path} was {str(known)[:80]}, is {str(asked)[:80]}"]


def _file_name(name: str) -> str:
    """A model's name as that of a folder."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._")[:80] or "model"
