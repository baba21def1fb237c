"""IgakuQA's files as tasks: the Japanese medical licensing examinations, by year and exam block (R84).

Files: ``<year>/<exam>-<block>.jsonl``, beside them ``..._metadata.jsonl`` (subject, share of candidates who were right,
options that fail a candidate), both optional but the first; translations are passed over. The five years of the
benchmark are 2018 to 2022, exams 112 to 116, blocks A to F, 400 questions a year.

The conversation is the published one: a system line, up to three worked questions, the question with its options in
lines ``a: ...``, how many letters to pick, ``答え:``. One wording differs: the published line says "a,b,c,d,e" also
where there are six or eight options, here it names the letters that there are. Calculation questions are asked as they
stand, without options.

Costs: 0.1 s a year. Does not: show pictures (``text_only`` says which questions need one), or score.
"""

from __future__ import annotations

import logging
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ncvc.chat import Message
from ncvc.evaluation.benchmark_rows import Record, Records, read_records, refuse
from ncvc.evaluation.igakuqa import ALWAYS_RIGHT
from ncvc.evaluation.item import Item, Task

SYSTEM_LINE = "医師国家試験を解きます。"
BLOCKS = "ABCDEF"
PUBLISHED_YEARS = ("2018", "2019", "2020", "2021", "2022")
DEMONSTRATIONS = ("prompts/prompt.jsonl", "scripts/prompts/prompt.jsonl")

_NAME = re.compile(r"igakuqa(?:_(\d{4})(?:_([A-Z]))?)?")
_FILE = re.compile(r"(\d+)-([A-Z])\.jsonl")
_BOXES = re.compile(r"解答[:：]\s*([0-9][0-9,，\s]*)?((?:[①-⑳][.．]?)+)")
_EITHER = re.compile(r"[a-z](?: or [a-z])+")
_LONGEST_NUMBER = 30

logger = logging.getLogger(__name__)


def is_igakuqa(name: str) -> bool:
    """Whether ``name`` has the form igakuqa, igakuqa_2018 or igakuqa_2018_A."""
    return _NAME.fullmatch(name) is not None


def igakuqa_tasks(folder: Path, *, name: str = "igakuqa", shots: int = 0) -> list[Task]:
    """The task ``name``: igakuqa (every year there is, a task each), igakuqa_2018 or igakuqa_2018_A.

    ``folder`` holds the repository's ``data`` and ``prompts``, or the years themselves. ``shots`` worked questions come
    first; where the file of them is missing there are none, which is told. ``FileNotFoundError`` names the years and
    blocks there are, ``ValueError`` every bad row.
    """
    folder = Path(folder)
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no task of IgakuQA; write igakuqa, igakuqa_2018 or igakuqa_2018_A.")
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 0:
        raise ValueError(f"shots={shots!r}: must be the number of worked questions, 0 or 3 as published.")
    year, block = found[1], found[2]
    files = block_files(folder)
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no IgakuQA: no file <year>/<exam>-<block>.jsonl, such as 2018/112-A.jsonl."
        )
    if year and year not in files:
        raise FileNotFoundError(f"{name}: {folder} holds no year {year}; it holds {', '.join(files)}.")
    if block and block not in files[year]:
        raise FileNotFoundError(
            f"{name}: {folder} holds no block {block} of {year}; it holds {', '.join(files[year])}."
        )
    demonstrations, shown = _demonstrations(folder, shots)
    tasks = []
    for each in [year] if year else list(files):
        paths = {block: files[each][block]} if block else files[each]
        task_name = name if year else f"igakuqa_{each}"
        tasks.append(_task(task_name, paths, folder=folder, year=each, demonstrations=demonstrations, shown=shown))
        lacking = [letter for letter in BLOCKS if letter not in paths]
        if lacking and not block:
            logger.warning("%s lacks the blocks %s; its points are no year's points", task_name, ", ".join(lacking))
    return tasks


def block_files(folder: Path) -> dict[str, dict[str, Path]]:
    """Paths of the question files by year and block, both in order; {} where there are none."""
    years: dict[str, dict[str, Path]] = {}
    for data in (Path(folder) / "data", Path(folder)):
        for path in sorted(data.glob("[0-9][0-9][0-9][0-9]/*.jsonl")):
            if match := _FILE.fullmatch(path.name):
                years.setdefault(path.parent.name, {})[match[2]] = path
        if years:
            break
    return {year: dict(sorted(years[year].items())) for year in sorted(years)}


def _task(
    name: str,
    paths: Mapping[str, Path],
    *,
    folder: Path,
    year: str,
    demonstrations: Sequence[Message],
    shown: Mapping[str, Any],
) -> Task:
    items: list[Item] = []
    problems: list[str] = []
    places: dict[str, str] = {}
    hashes: dict[str, str] = {}
    for path in paths.values():
        records = read_records(path)
        statistics, also = _statistics(path.with_name(f"{path.stem}_metadata.jsonl"), problems)
        for read in filter(None, (records, also)):
            hashes[read.path.relative_to(folder).as_posix()] = read.sha256
            problems += read.problems
        for record in records.rows:
            try:
                item = _item(
                    record, task=name, group=path.stem.replace("-", ""), before=demonstrations, more=statistics
                )
                if item.id in places:
                    raise ValueError(f"problem_id {item.id} stands in {places[item.id]} already; keep one of them.")
            except ValueError as error:
                problems.append(f"{record.where}: {error}")
                continue
            places[item.id] = record.where
            items.append(item)
    refuse(problems)
    source = {"files": hashes, "year": year, "blocks": list(paths), **shown}
    return Task(name=name, family="igakuqa", items=tuple(items), source=source)


def _item(
    record: Record, *, task: str, group: str, before: Sequence[Message], more: Mapping[str, Mapping[str, Any]]
) -> Item:
    problem, choices, answer = _question(record.cells)
    points = record.cells.get("points")
    if not re.fullmatch(r"[0-9]{1,2}", str(points)) or isinstance(points, bool):
        raise ValueError(f"points is {points!r}; it has to be a whole number such as '1'.")
    text_only = record.cells.get("text_only")
    if not isinstance(text_only, bool):
        raise ValueError(f"text_only is {text_only!r}; it has to be true or false.")
    letters = tuple(string.ascii_lowercase[: len(choices)])
    golds = _letter_golds(answer, letters) if letters else _number_golds(answer, problem)
    name = str(record.cells["problem_id"])
    if name in ALWAYS_RIGHT:
        golds += [(letter,) for letter in letters if (letter,) not in golds]
    return Item(
        id=name,
        task=task,
        kind="number" if not letters else "choice" if len(answer) == 1 else "letters",
        messages=(Message("system", SYSTEM_LINE), *before, Message("user", prompt(problem, choices, len(answer)))),
        gold=golds[0],
        alternatives=tuple(golds[1:]),
        letters=letters,
        options=tuple(choices),
        wanted=len(answer),
        group=group,
        tag=str(more.get(name, {}).get("category", "")),
        points=int(str(points)),
        text_only=text_only,
        metadata={"question": problem, "published_answer": tuple(answer), **more.get(name, {})},
    )


def prompt(problem: str, choices: Sequence[str], wanted: int) -> str:
    """The user turn that asks ``problem``; calculation questions have no choices and are asked as they stand."""
    if not choices:
        return f"問題: {problem}"
    letters = string.ascii_lowercase[: len(choices)]
    options = [f"{letter}: {choice}" for letter, choice in zip(letters, choices, strict=True)]
    pick = f"必ず{','.join(letters)}の中からちょうど{wanted}個選んでください。"
    return "\n".join([f"問題: {problem}", *options, pick, "答え:"])


def _question(cells: Mapping[str, Any]) -> tuple[str, list[str], list[str]]:
    """Problem, choices and right answer of a row, checked for their types."""
    for key in ("problem_id", "problem_text"):
        if not isinstance(cells.get(key), str) or not cells[key].strip():
            raise ValueError(
                f"{key} is {'empty' if cells.get(key) == '' else repr(cells.get(key))}; it has to be text."
            )
    lists = {}
    for key in ("choices", "answer"):
        value = cells.get(key)
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise ValueError(f"{key} is {str(value)[:40]!r}; it has to be a list of texts.")
        lists[key] = value
    if not lists["answer"] or not all(entry.strip() for entry in lists["answer"]):
        raise ValueError("answer is empty; a question without a right answer cannot be scored.")
    if len(lists["choices"]) == 1 or len(lists["choices"]) > len(string.ascii_lowercase):
        raise ValueError(f"has {len(lists['choices'])} choices; it has to have none (a calculation) or 2 to 26.")
    return cells["problem_text"], lists["choices"], lists["answer"]


def _letter_golds(answer: Sequence[str], letters: Sequence[str]) -> list[tuple[str, ...]]:
    """The right letters, in order; of an answer "a or d" each one by itself."""
    golds: list[tuple[str, ...]] = [tuple(sorted(answer))]
    if len(answer) == 1 and _EITHER.fullmatch(answer[0]):
        golds = [(letter,) for letter in answer[0].split(" or ")]
    named = [letter for gold in golds for letter in gold]
    if wrong := [letter for letter in named if letter not in letters]:
        raise ValueError(f"answer names {', '.join(map(repr, wrong))}; its choices are {', '.join(letters)}.")
    if len(set(named)) != len(named):
        raise ValueError(f"answer names a letter twice: {', '.join(named)}.")
    return golds


def _number_golds(answer: Sequence[str], problem: str) -> list[tuple[str, ...]]:
    """The digits as stored, and the number that they make in the boxes 解答：①.② of the question."""
    digits = answer[0].strip()
    if len(answer) != 1 or len(digits) > _LONGEST_NUMBER or not re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", digits):
        raise ValueError(f"answer is {','.join(answer)[:40]!r}; without choices it has to be one number in digits.")
    golds: list[tuple[str, ...]] = [(digits,)]
    boxes = _BOXES.search(problem)
    if boxes and "." not in digits:
        given = re.sub(r"\D", "", boxes[1] or "")
        places = re.sub(r"[①-⑳]", "0", boxes[2]).replace("．", ".")
        before, point, after = places.partition(".")
        if len(before) + len(after) == len(digits) and "." not in after:
            number = given + digits[: len(before)] + (point and after and point) + digits[len(before) :]
            if number != digits:
                golds.append((number,))
    return golds


def _statistics(path: Path, problems: list[str]) -> tuple[dict[str, dict[str, Any]], Records | None]:
    """What the metadata file says of each question, by problem_id; nothing where there is no file."""
    if not path.is_file():
        return {}, None
    records = read_records(path)
    found: dict[str, dict[str, Any]] = {}
    for record in records.rows:
        name, kinki = record.cells.get("problem_id"), record.cells.get("kinki") or []
        if not isinstance(name, str) or not isinstance(kinki, list) or not all(isinstance(k, str) for k in kinki):
            problems.append(f"{record.where}: problem_id has to be text and kinki a list of letters.")
            continue
        found[name] = {
            "category": str(record.cells.get("category") or ""),
            "kinki": tuple(sorted({letter for entry in kinki for letter in entry if letter.isalpha()})),
            "human_accuracy": _percent(record.cells.get("human_accuracy")),
            "breakdown": tuple(map(_percent, _listed(record.cells.get("breakdown")))),
            "reason": str(record.cells.get("reason") or ""),
        }
    return found, records


def _percent(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number <= 100 else None


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else ()


def _demonstrations(folder: Path, shots: int) -> tuple[list[Message], dict[str, Any]]:
    """The turns of ``shots`` worked questions, and what to say of them in a task's source."""
    if not shots:
        return [], {"shots": 0}
    path = next((path for name in DEMONSTRATIONS if (path := folder / name).is_file()), None)
    if path is None:
        logger.warning(
            "shots=%d, but %s holds no %s with worked questions: IgakuQA is asked zero-shot",
            shots,
            folder,
            DEMONSTRATIONS[0],
        )
        return [], {"shots": 0, "shots_asked": shots}
    records = read_records(path)
    problems = list(records.problems)
    turns: list[Message] = []
    for record in records.rows[:shots]:
        try:
            problem, choices, answer = _question(record.cells)
        except ValueError as error:
            problems.append(f"{record.where}: {error}")
            continue
        turns += [Message("user", prompt(problem, choices, len(answer))), Message("assistant", ",".join(answer))]
    refuse(problems)
    if len(records.rows) < shots:
        raise ValueError(
            f"shots={shots}: {path} holds {len(records.rows)} worked questions; set shots to at most that."
        )
    return turns, {"shots": shots, "demonstrations": {path.relative_to(folder).as_posix(): records.sha256}}
