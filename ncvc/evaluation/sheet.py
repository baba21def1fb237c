"""The score sheet: ``scores.json``, and the same as a table for the terminal.

A file of scores holds the model, split, shots, method and, for each task, counts (items, answered, refused, failed,
missing), the scores as published and corrected, intervals, chance, constant answer, baselines, leak and verdict; see
`ncvc.evaluation.scoring`, which makes it. Scores are over the items that were answered, and the counts say how many.
Costs: nothing. Does not: compute, or judge; words come from `ncvc.evaluation.verdicts`.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ncvc.storage import write_json

FORMAT = 1
SCORES = "scores.json"

Scores = dict[str, Any]
_NAMES = {
    "kappa": "kappa",
    "accuracy": "accuracy",
    "percent": "points %",
    "overlap_f1": "overlap F1",
    "exact_f1": "exact F1",
}
_LEFT = ("task", "baseline")


def write_scores(path: Path, scores: Mapping[str, Any]) -> None:
    """Write ``scores.json``, whole or not at all; equal scores are equal bytes."""
    write_json(Path(path), scores)


def read_scores(path: Path) -> Scores:
    """The scores of a file, or of the folder that holds ``scores.json``.

    ``FileNotFoundError`` or ``ValueError`` for what is no such file, or of another version.
    """
    path = Path(path)
    path = path / SCORES if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there are no scores; make them with python -m ncvc.evaluate.")
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no file of scores ({error}); score the answers again: python -m ncvc.evaluate score=FOLDER."
        ) from error
    if not isinstance(scores, dict) or not isinstance(scores.get("tasks"), list):
        raise ValueError(f"{path} is no file of scores (it has no tasks); name one that python -m ncvc.evaluate wrote.")
    if scores.get("format") != FORMAT:
        raise ValueError(
            f"{path}: format {scores.get('format')!r} is not the {FORMAT} that this version reads; score the answers "
            "again: python -m ncvc.evaluate score=FOLDER."
        )
    return scores


def sheet_text(scores: Mapping[str, Any]) -> str:
    """The table, a verdict under each row, and below what the figures mean."""
    rows = []
    for task in scores["tasks"]:
        rows.append((task, {name: cell(task) for name, cell in _CELLS.items()}))
    widths = {name: max([_width(name), *(_width(cells[name]) for _, cells in rows)]) for name in _CELLS}
    lines = [_heading(scores), "", _line({name: name for name in _CELLS}, widths)]
    lines.append("  ".join("-" * widths[name] for name in _CELLS))
    for task, cells in rows:
        lines.append(_line(cells, widths))
        lines.append(f"    {task['verdict']}")
        if unread := task.get("unread"):
            ends = ", ".join(_number(end, _digits(task)) for end in unread["interval"])
            value = _number(unread["value"], _digits(task))
            lines.append(f"    on the {unread['items']:,} items not known to be trained on: {value} [{ends}]")
        if task["failed"] or task["missing"]:
            lines.append(f"    {_unanswered(task)}: the scores are of the {task['answered']:,} answered ones")
    return "\n".join([*lines, "", *_notes(scores)])


def _heading(scores: Mapping[str, Any]) -> str:
    model = scores.get("model") or {}
    told = [str(model.get("name") or "unnamed model"), f"method {scores.get('method')}", f"split {scores.get('split')}"]
    if scores.get("fold") is not None:
        told.append(f"fold {scores['fold']}")
    return ", ".join([*told, f"{scores.get('shots') or 0} worked questions"])


def _line(cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
    parts = []
    for name, width in widths.items():
        space = " " * (width - _width(cells[name]))
        parts.append(cells[name] + space if name in _LEFT else space + cells[name])
    return "  ".join(parts).rstrip()


def _width(text: str) -> int:
    """Columns of a terminal: full-width characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _number(value: Any, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _digits(task: Mapping[str, Any]) -> int:
    return 1 if task["metric"] == "percent" else 2


def _items(task: Mapping[str, Any]) -> str:
    answered, items = task["answered"], task["items"]
    return f"{items:,}" if answered == items else f"{answered:,}/{items:,}"


def _published(task: Mapping[str, Any]) -> str:
    scores = task["as_published"]
    if "points" in scores:
        return f"{scores['points']} ({_number(scores['percent'], 1)}%)"
    if "partial_f1" in scores:
        return f"{_number(scores['partial_f1'])} ({_number(scores['exact_f1'])})"
    if "kappa" in scores:
        return f"{_number(scores['kappa'])} ({_number(scores['accuracy'])})"
    return _number(scores.get("accuracy"))


def _corrected(task: Mapping[str, Any]) -> str:
    metric = task["metric"]
    return f"{_NAMES.get(metric, metric)} {_number(task['corrected'].get(metric), _digits(task))}"


def _interval(task: Mapping[str, Any]) -> str:
    interval = task["interval"].get("documents") or task["interval"]
    ends = (interval.get("corrected") or {}).get(task["metric"])
    return "-" if ends is None else f"[{_number(ends[0], _digits(task))}, {_number(ends[1], _digits(task))}]"


def _chance(task: Mapping[str, Any]) -> str:
    return _number(task["chance"].get(task["metric"]), _digits(task))


def _constant(task: Mapping[str, Any]) -> str:
    return _number((task["majority"].get("corrected") or {}).get(task["metric"]), _digits(task))


def _baseline(task: Mapping[str, Any]) -> str:
    found = [
        (scores["corrected"][task["metric"]], name)
        for name, scores in task["baselines"].items()
        if scores["corrected"].get(task["metric"]) is not None
    ]
    if not found:
        return "-"
    value, name = max(found)
    return f"{name} {_number(value, _digits(task))}"


def _refused(task: Mapping[str, Any]) -> str:
    return "-" if not task["answered"] else f"{task['refused'] / task['answered']:.0%}"


def _leak(task: Mapping[str, Any]) -> str:
    leak = task["leak"]
    if leak["status"] == "unknown":
        return "unknown"
    return "none" if leak["status"] == "none" else f"{leak['share']:.0%}"


_CELLS = {
    "task": lambda task: str(task["task"]),
    "items": _items,
    "as published": _published,
    "corrected": _corrected,
    "95% interval": _interval,
    "chance": _chance,
    "constant": _constant,
    "baseline": _baseline,
    "refused": _refused,
    "read": _leak,
}


def _unanswered(task: Mapping[str, Any]) -> str:
    parts = [(task["failed"], "failed"), (task["missing"], "not asked yet")]
    return " and ".join(f"{number:,} {word}" for number, word in parts if number)


def _notes(scores: Mapping[str, Any]) -> Sequence[str]:
    kinds = {kind for task in scores["tasks"] for kind in task["as_published"]}
    notes = []
    if "kappa" in kinds:
        notes.append("as published, choices: kappa (accuracy).")
    if "partial_f1" in kinds:
        notes.append('as published, spans: "partial" F1 (exact F1); the first can exceed 1.')
    if any(task["interval"].get("documents") for task in scores["tasks"]):
        notes.append("95% interval: over documents where several items are about one, else over items.")
    notes.append("constant: the training rows' most frequent answer, or the test's own where there are no such rows.")
    if "points" in kinds:
        notes.append("as published, IgakuQA: points (% of all points).")
    notes.append("read: share of the items whose text is known to have been trained on.")
    for task in scores["tasks"]:
        split = task["leak"].get("split")
        if split and split["seen"]:
            notes.append(
                f"{task['task']}: tuning on split {split['split']} reads the documents of {split['seen']} of "
                f"{split['rows']} test rows."
            )
    return notes
