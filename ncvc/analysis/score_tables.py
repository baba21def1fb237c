"""The report's tables as the reader sees them: published rows, one's own runs, and what guessing scores, side by side.

Own figures come from the ``scores.json`` files of `ncvc.evaluate`. In Tables 2 to 7 they stand as the published scorers
count them, because the published rows do; the sheets below hold the corrected scores with their intervals, what they
are held against, and the verdict, in its own words. Costs milliseconds. Does not: score, judge, or rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ncvc.analysis.own_scores import OwnScores, interval, number, rivals, section
from ncvc.analysis.published_scores import PublishedScores, PublishedTable, Value

NOTHING = "–"
RowKind = Literal["cited", "report", "own", "reference"]
"""Cited by the report; a model of the report; one's own; what a score is held against."""

_METRICS = {"percent": "% of points", "overlap_f1": "overlap F1", "exact_f1": "exact F1", "partial_f1": "partial F1"}
_FIGURES = {
    "points": ("points", "percent"),
    "kappa_accuracy": ("kappa", "accuracy"),
    "partial_exact": ("partial_f1", "exact_f1"),
}
_TABLE_NAMES = {
    **{f"igakuqa_{year}": str(year) for year in range(2018, 2023)},
    **{"jmmlu_med": "JMMLU-Med", "crade": "CRADE", "rrtnm": "RRTNM", "smdis": "SMDIS", "jcsts": "JCSTS"},
    **{"mrner_disease": "MRNER-disease", "mrner_medicine": "MRNER-medicine", "nrner": "NRNER"},
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line: ``label``, more about it in ``detail``, and one text per further column, with ``marks`` such as R126.

    ``source`` says who published it, or which file it is from.
    """

    label: str
    kind: RowKind
    cells: tuple[str, ...]
    detail: str = ""
    source: str = ""
    marks: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Table:
    """``header`` names all columns, the label's first; ``notes`` are sentences below it."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


# --- Tables 2 to 7
def report_table(table: PublishedTable, published: PublishedScores, own: Sequence[OwnScores]) -> Table:
    """One of Tables 2 to 7 with the published rows, own rows in the same form, and what scores are held against."""
    header = ("model", *(_TABLE_NAMES.get(task, task) for task in table.tasks))
    rows = [
        Row(
            label=row.model,
            kind="report" if row.is_the_reports else "cited",
            source=published.sources[row.source],
            cells=tuple(_published_cell(value, table, place) for place, value in enumerate(row.values)),
            marks={
                place: found
                for place, task in enumerate(table.tasks)
                if (found := published.marks(table.number, model=row.model, task=task))
            },
        )
        for row in table.rows
    ]
    rows += [row for scores in own if (row := _own_row(scores, table)) is not None]
    rows += _reference_rows(table, published, own)
    return Table(
        name=f"table_{table.number}",
        title=f"Table {table.number}: {table.title}",
        header=header,
        rows=tuple(rows),
        notes=tuple(_notes(table, published, any(row.kind == "own" for row in rows))),
        marks=published.marks(table.number),
    )


def _published_cell(value: Value, table: PublishedTable, place: int) -> str:
    if table.form == "points":
        return f"{value[0]:.0f} ({100 * value[0] / table.totals[place]:.1f}%)"
    return f"{value[0]:.2f} ({value[1]:.2f})"


def _own_row(scores: OwnScores, table: PublishedTable) -> Row | None:
    cells = tuple(_own_cell(scores.tasks, task, table, place) for place, task in enumerate(table.tasks))
    if all(cell == NOTHING for cell in cells):
        return None
    return Row(label=scores.name, detail=scores.asked, kind="own", cells=cells, source=scores.place)


def _own_cell(tasks: Mapping[str, Mapping[str, Any]], task: str, table: PublishedTable, place: int) -> str:
    """As published; points of fewer than all questions with what could be had, and unanswered items told."""
    records = [tasks[task]] if task in tasks else []
    if not records and table.form == "points":
        records = [record for name, record in sorted(tasks.items()) if re.fullmatch(rf"{task}_[A-F]", name)]
    if not records:
        return NOTHING
    figures = [section(record, "as_published") for record in records]
    if table.form != "points":
        text = _pair(figures[0], _FIGURES[table.form])
    else:
        points, total = (math.fsum(number(each, name) or 0 for each in figures) for name in ("points", "total"))
        percent = f"{100 * points / total:.1f}%" if total else NOTHING
        text = (
            f"{points:.0f} ({percent})" if total == table.totals[place] else f"{points:.0f} of {total:.0f} ({percent})"
        )
    if table.items is not None and (items := number(records[0], "items")) is not None and items != table.items:
        text += f", {items:.0f} items"
    unanswered = sum(int(number(record, "items") or 0) - int(number(record, "answered") or 0) for record in records)
    return f"{text}, {unanswered} not answered" if unanswered > 0 else text


def _pair(figures: Mapping[str, Any], names: tuple[str, str]) -> str:
    first, second = (number(figures, name) for name in names)
    if first is None and second is None:
        return NOTHING
    return f"{_text(first, 2)} ({_text(second, 2)})"


def _reference_rows(table: PublishedTable, published: PublishedScores, own: Sequence[OwnScores]) -> list[Row]:
    """Guessing, then the constant answer and the baselines that the own score files hold, once per split."""
    guesses = [published.guessing.get(task) for task in table.tasks]
    cells = []
    for place, guess in enumerate(guesses):
        if guess is None:
            cells.append(NOTHING)
        elif table.form == "points":
            cells.append(f"{guess.expected:.1f} ({100 * guess.expected / table.totals[place]:.1f}%)")
        else:
            cells.append(f"0.00 ({guess.expected:.2f})")
    rows = []
    if any(cell != NOTHING for cell in cells):
        rows.append(Row(label="guessing", kind="reference", cells=tuple(cells), source="computed here"))
    found: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for scores in own:
        split = "" if table.form == "points" else scores.asked.partition(",")[0]
        for name, record in scores.tasks.items():
            if record.get("answered") != record.get("items"):
                continue  # held against the answered items only
            for rival, entry in rivals(record).items():
                found.setdefault((rival, split), {}).setdefault(name, section(entry, "as_published"))
    for (label, split), by_task in sorted(found.items()):
        as_tasks = {task: {"as_published": figures} for task, figures in by_task.items()}
        cells = [_own_cell(as_tasks, task, table, place) for place, task in enumerate(table.tasks)]
        if any(cell != NOTHING for cell in cells):
            source = "computed with the own runs, no language model"
            rows.append(Row(label=label, detail=split, kind="reference", cells=tuple(cells), source=source))
    return rows


def _notes(table: PublishedTable, published: PublishedScores, has_own: bool) -> list[str]:
    notes = []
    if table.form == "points":
        notes.append(f"Points that can be had: {', '.join(map(str, table.totals))}. The pass mark is about 75%.")
    elif table.form == "kappa_accuracy":
        notes.append(
            f"Kappa is linear-weighted for CRADE and JCSTS. Each figure rests on {table.items} items: the 95% interval "
            "of an accuracy of 0.50 is about 0.40 to 0.60."
        )
    else:
        notes.append(
            'The published "partial" F1 counts every right span as soon as one is found exactly: one right span per '
            "text alone scores 1.71 on MRNER-disease, where its exact F1 is 0.29."
        )
    if guesses := _guessing_note(table, published):
        notes.append(guesses)
    if has_own:
        notes.append("Own rows are scored as published, for comparison; their corrected scores are in the sheets.")
    return notes


def _guessing_note(table: PublishedTable, published: PublishedScores) -> str:
    """The ranges of guessing, and how many figures of the report's models lie within or below them."""
    known = {
        place: guess.range
        for place, task in enumerate(table.tasks)
        if (guess := published.guessing.get(task)) is not None and guess.range is not None
    }
    if not known:
        return ""
    digits, part, unit = (0, 0, "points") if table.form == "points" else (2, 1, "accuracy")
    ranges = [
        f"{_TABLE_NAMES[table.tasks[place]]} {low:.{digits}f} to {high:.{digits}f}"
        for place, (low, high) in known.items()
    ]
    figures = [
        (row.values[place][part], high)
        for row in table.rows
        if row.is_the_reports
        for place, (_, high) in known.items()
    ]
    within = sum(value <= high for value, high in figures)
    return (
        f"95% of those who guess get ({unit}): {', '.join(ranges)}. Of the {len(figures)} figures of the report's "
        f"models there, {within} lie within or below that."
    )


# --- one's own sheets
def sheet_table(scores: OwnScores, *, place: int) -> Table:
    """Everything a score is held against, and its verdict as the file has it."""
    header = ("task", "items", "as published", "corrected [95% interval]", "chance", "constant", "baseline", "refused",
              "read before", "verdict")  # fmt: skip
    rows = tuple(Row(label=name, kind="own", cells=_sheet_cells(record)) for name, record in scores.tasks.items())
    leaks = {name: section(section(record, "leak"), "split") for name, record in scores.tasks.items()}
    seen = [f"{name} {share:.0%}" for name, split in leaks.items() if (share := number(split, "share"))]
    notes = []
    if seen:
        notes.append(f"Share of the items whose documents tuning on this split reads: {', '.join(seen)}.")
    notes.append(f"Scores: {scores.place}")
    if command := scores.content.get("command"):
        notes.append(f"Command: {command}")
    return Table(
        name=f"sheet_{place}", title=f"{scores.name} ({scores.asked})", header=header, rows=rows, notes=tuple(notes)
    )


def _sheet_cells(record: Mapping[str, Any]) -> tuple[str, ...]:
    metric = str(record.get("metric") or "")
    digits = 1 if metric == "percent" else 2
    items, answered = (int(number(record, name) or 0) for name in ("items", "answered"))
    corrected = number(section(record, "corrected"), metric)
    low, high = interval(record)
    ends = "" if low is None else f" [{_text(low, digits)}, {_text(high, digits)}]"
    against = {
        name: value
        for name, entry in section(record, "baselines").items()
        if isinstance(entry, Mapping) and (value := number(section(entry, "corrected"), metric)) is not None
    }
    highest = max(against, key=lambda name: (against[name], name), default=None)
    refused = number(record, "refused")
    return (
        str(items) if answered == items else f"{answered} of {items}",
        _as_published(section(record, "as_published")),
        f"{_METRICS.get(metric, metric)} {_text(corrected, digits)}{ends}",
        _text(number(section(record, "chance"), metric), digits),
        _constant(section(record, "majority"), metric, digits),
        NOTHING if highest is None else f"{highest} {_text(against[highest], digits)}",
        NOTHING if not answered or refused is None else f"{refused / answered:.0%}",
        _read_before(section(record, "leak")),
        str(record.get("verdict") or NOTHING),
    )


def _as_published(figures: Mapping[str, Any]) -> str:
    if (points := number(figures, "points")) is not None:
        return f"{points:.0f} of {_text(number(figures, 'total'), 0)}"
    pair = next((names for names in _FIGURES.values() if number(figures, names[0]) is not None), None)
    return _text(number(figures, "accuracy"), 2) if pair is None else _pair(figures, pair)


def _constant(entry: Mapping[str, Any], metric: str, digits: int) -> str:
    value = number(section(entry, "corrected"), metric)
    told = ", in hindsight" if value is not None and "hindsight" in str(entry.get("name")) else ""
    return f"{_text(value, digits)}{told}"


def _read_before(leak: Mapping[str, Any]) -> str:
    share = number(leak, "share")
    if leak.get("status") in ("none", "unknown"):
        return str(leak["status"])
    return NOTHING if share is None else f"{'at least ' if leak.get('at_least') is True else ''}{share:.0%}"


def _text(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"
