"""Tasks by name: IgakuQA, JMED-LLM, JMMLU and files of one's own, all as items that can be asked and scored.

Names: ``igakuqa`` (every year there is), ``igakuqa_2018``, ``igakuqa_2018_A``; ``jmed_llm`` (its eight) or one of them
(``crade``, ``jmmlu_med`` ...); ``jmmlu`` (its five medical subjects in one), ``jmmlu_<subject>``; and the names of
one's own tasks. Benchmarks lie below one folder, as ``igakuqa``, ``jmed_llm``, ``jmmlu``, or under the names of their
repositories. Splits and folds are JMED-LLM's alone; shots (worked questions before each) are IgakuQA's alone.

Costs: 2 s for JMED-LLM with its documents, 0.1 s an IgakuQA year. Does not: download, ask, or score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ncvc.evaluation.igakuqa_files import block_files, igakuqa_tasks, is_igakuqa
from ncvc.evaluation.item import Item, Kappa, Task
from ncvc.evaluation.jmed_files import SPAN_TASKS, Row, find_files, read_set
from ncvc.evaluation.jmed_llm import TASKS as JMED_TASKS
from ncvc.evaluation.jmed_llm import Example, Split, test_examples
from ncvc.evaluation.jmmlu import MEDICAL_SUBJECTS, jmmlu_task
from ncvc.evaluation.own_tasks import OwnTask, own_task, own_task_settings
from ncvc.settings import suggestion

FOLDERS = {
    "igakuqa": ("igakuqa", "IgakuQA"),
    "jmed_llm": ("jmed_llm", "JMED-LLM"),
    "jmmlu": ("jmmlu/JMMLU", "JMMLU/JMMLU", "jmmlu", "JMMLU"),
}
"""Where each benchmark may lie below the benchmarks' folder; if at none of these, in the folder itself."""

KAPPAS: Mapping[str, Kappa] = {
    "jmmlu_med": "unweighted",
    "crade": "linear",
    "rrtnm": "unweighted",
    "smdis": "unweighted",
    "jcsts": "linear",
}
"""Cohen's kappa of JMED-LLM's choice tasks; the two with ordered options are weighted (R85)."""


def load_tasks(
    names: Sequence[str],
    *,
    directory: Path | str,
    split: Split = "paper",
    fold: int | None = None,
    shots: int = 0,
    own: Mapping[str, Any] | None = None,
) -> list[Task]:
    """The tasks ``names`` name, each once, in their order.

    ``directory`` holds the benchmarks; ``split`` and ``fold`` choose JMED-LLM's test rows, ``shots`` the worked
    questions before IgakuQA's; ``own`` is {name: settings of ``OwnTask``}. ``ValueError`` or ``FileNotFoundError`` for
    names that are unknown (with the nearest known), missing files and every bad row.
    """
    directory = Path(directory).expanduser()
    own_tasks = {settings.name: settings for settings in own_task_settings(own or {})}
    wanted = _expanded([names] if isinstance(names, str) else list(names), own_tasks, directory)
    if any(name not in own_tasks for name in wanted) and not directory.is_dir():
        raise FileNotFoundError(
            f"benchmarks.dir={directory} is no folder (looked in {Path.cwd()} if relative); set it to the folder with "
            "igakuqa, jmed_llm and jmmlu, or fetch them with python -m ncvc.download benchmarks."
        )
    jmed_names = [name for name in wanted if name in JMED_TASKS]
    jmed_folder = benchmark_folder(directory, "jmed_llm")
    jmed_tasks = _jmed_tasks(jmed_folder, names=jmed_names, split=split, fold=fold) if jmed_names else {}
    tasks: list[Task] = []
    for name in wanted:
        if name in own_tasks:
            tasks.append(own_task(own_tasks[name]))
        elif name in jmed_tasks:
            tasks.append(jmed_tasks[name])
        elif is_igakuqa(name):
            tasks += igakuqa_tasks(benchmark_folder(directory, "igakuqa"), name=name, shots=shots)
        else:
            tasks.append(jmmlu_task(benchmark_folder(directory, "jmmlu"), name=name))
    return list({task.name: task for task in tasks}.values())


def benchmark_folder(directory: Path, benchmark: str) -> Path:
    """The folder of ``benchmark`` (a key of ``FOLDERS``) below ``directory``, or ``directory`` itself."""
    return next((path for name in FOLDERS[benchmark] if (path := directory / name).is_dir()), directory)


def known_names(directory: Path, own: Sequence[str] = ()) -> list[str]:
    """Every name that can be asked for with what lies in ``directory``, groups first."""
    years = block_files(benchmark_folder(directory, "igakuqa"))
    subjects = sorted(path.stem for path in benchmark_folder(directory, "jmmlu").glob("*.csv"))
    known = ["igakuqa", "jmed_llm", "jmmlu", *JMED_TASKS]
    known += [f"igakuqa_{year}" for year in years]
    known += [f"igakuqa_{year}_{block}" for year, blocks in years.items() for block in blocks]
    known += [f"jmmlu_{subject}" for subject in subjects or MEDICAL_SUBJECTS]
    return list(dict.fromkeys([*known, *own]))


def _expanded(names: Sequence[str], own: Mapping[str, OwnTask], directory: Path) -> list[str]:
    """The names with jmed_llm as its eight; ``ValueError`` for those that no task can have."""
    if not names:
        raise ValueError("tasks is empty; name at least one, such as jmed_llm or igakuqa_2018.")
    if taken := [name for name in own if _is_published(name) or name == "jmed_llm"]:
        raise ValueError(f"benchmarks.own.{taken[0]} has the name of a published task; rename it.")
    wanted: list[str] = []
    problems = []
    for name in names:
        if not isinstance(name, str):
            problems.append(f"tasks: {name!r} is no name of a task.")
        elif name == "jmed_llm":
            wanted += JMED_TASKS
        elif name in own or _is_published(name):
            wanted.append(name)
        else:
            problems.append(f"tasks: there is no task {name!r}{suggestion(name, known_names(directory, list(own)))}")
    if problems:
        raise ValueError("\n".join(problems))
    return list(dict.fromkeys(wanted))


def _is_published(name: str) -> bool:
    return name in JMED_TASKS or is_igakuqa(name) or name == "jmmlu" or name.startswith("jmmlu_")


def _jmed_tasks(folder: Path, *, names: Sequence[str], split: Split, fold: int | None) -> dict[str, Task]:
    files = find_files(folder, tasks=names)
    examples = _jmed_examples(folder, names, split, fold)
    sources = {example.source for example in examples}
    rows = {source: read_set(files[source], name=source) for source in sources}
    hashes = {source: hashlib.sha256(files[source].read_bytes()).hexdigest() for source in sources}
    tasks = {}
    for name in names:
        own = [example for example in examples if example.task == name]
        if not own:
            raise ValueError(f"{name}: split={split} with fold={fold} leaves no row to be tested on; set another fold.")
        used = sorted({example.source for example in own})
        source = {
            "files": {files[each].relative_to(folder).as_posix(): hashes[each] for each in used},
            "split": split,
            "fold": fold,
        }
        items = tuple(_jmed_item(example, rows[example.source][example.row]) for example in own)
        tasks[name] = Task(name=name, family="jmed_llm", items=items, kappa=KAPPAS.get(name), source=source)
    return tasks


def _jmed_examples(folder: Path, names: Sequence[str], split: Split, fold: int | None) -> list[Example]:
    """Test rows of ``names``.

    What is one document, and so the folds, comes from the files of all tasks: a fold of some tasks' files alone would
    hold documents that tuning, which reads all, has in other folds. So folds need all files; without folds one task can
    be read where the others' files are missing.
    """
    try:
        find_files(folder)
    except FileNotFoundError:
        if split == "grouped":
            raise
        return [each for name in names for each in test_examples(folder, split=split, fold=fold, task=name)]
    return [each for each in test_examples(folder, split=split, fold=fold) if each.task in names]


def _jmed_item(example: Example, row: Row) -> Item:
    spans = example.task in SPAN_TASKS
    return Item(
        id=f"{example.source}:{example.row}",
        task=example.task,
        kind="spans" if spans else "choice",
        messages=example.messages[:-1],
        gold=tuple(example.answer),
        letters=example.options,
        options=row.options,
        passage=example.passage,
        group=example.document,
        tag=row.tag,
        metadata={"question": row.question},
    )
