"""Tables 2 to 7 of the technical report, read from ``published_scores.yaml`` and checked (R86-R92, R126-R133).

Figures of other models are the report's citations, with who published them: none was measured here. Costs
milliseconds. Does not: hold scores of one's own (see `ncvc.analysis.score_tables`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

Form = Literal["points", "kappa_accuracy", "partial_exact"]
Value = tuple[float, ...]
"""(points,) or (kappa, accuracy) or ("partial" F1, exact F1)."""

PLACE = Path(__file__).with_name("published_scores.yaml")


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """A model's row: one value per task of its table. ``tokens_seen`` is known of the report's base models (R69)."""

    model: str
    source: str
    values: tuple[Value, ...]
    tokens_seen: int | None = None

    @property
    def is_the_reports(self) -> bool:
        """Whether it is a model of the report, and not a citation."""
        return self.source == "report"


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A table: ``totals`` are the points that can be had (IgakuQA), ``items`` the questions of a task (JMED-LLM)."""

    number: int
    title: str
    requirement: str
    form: Form
    tasks: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    totals: tuple[int, ...] = ()
    items: int | None = None


@dataclass(frozen=True, kw_only=True)
class Guess:
    """What guessing scores: points or accuracy, and the range of 95% of guessers where it was computed."""

    expected: float
    range: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """Where the report disagrees with itself, or with its source: what it says, what holds here, and in which cells.

    A cell is (number of the table, model or None, task or None).
    """

    id: str
    said: str
    here: str
    cells: frozenset[tuple[int, str | None, str | None]]


@dataclass(frozen=True, kw_only=True)
class PublishedScores:
    """Everything that the report prints as scores."""

    sources: Mapping[str, str]
    tables: tuple[PublishedTable, ...]
    guessing: Mapping[str, Guess]
    contradictions: tuple[Contradiction, ...]

    def table(self, number: int) -> PublishedTable:
        """Table ``number`` of the report, 2 to 7."""
        return next(table for table in self.tables if table.number == number)

    def marks(self, table: int, *, model: str | None = None, task: str | None = None) -> tuple[str, ...]:
        """Ids of the contradictions of a cell, or of a whole table."""
        return tuple(each.id for each in self.contradictions if (table, model, task) in each.cells)


@functools.lru_cache(maxsize=1)
def published_scores() -> PublishedScores:
    """The report's tables; ``ValueError`` when the file was changed into something that cannot be."""
    return read_published_scores(PLACE)


def read_published_scores(path: Path) -> PublishedScores:
    """The tables in a file of that form; ``ValueError`` names the row that cannot be."""
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    try:
        scores = PublishedScores(
            sources=dict(content["sources"]),
            tables=tuple(_table(entry) for entry in content["tables"]),
            guessing={task: _guess(**entry) for task, entry in content["guessing"].items()},
            contradictions=tuple(_contradiction(entry) for entry in content["contradictions"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not the form of published scores ({type(error).__name__}: {error})") from error
    if found := _problems(scores):
        raise ValueError("\n".join(f"{path}: {problem}" for problem in found))
    return scores


def _guess(*, expected: float, range: list[float] | None = None) -> Guess:
    return Guess(expected=float(expected), range=None if range is None else (float(range[0]), float(range[1])))


def _table(entry: Mapping[str, Any]) -> PublishedTable:
    rows = tuple(
        PublishedRow(
            model=row["model"],
            source=row["source"],
            values=tuple(tuple(float(number) for number in _listed(value)) for value in row["values"]),
            tokens_seen=row.get("tokens_seen"),
        )
        for row in entry["rows"]
    )
    return PublishedTable(
        number=entry["number"],
        title=entry["title"],
        requirement=entry["requirement"],
        form=entry["form"],
        tasks=tuple(entry["tasks"]),
        rows=rows,
        totals=tuple(entry.get("totals") or ()),
        items=entry.get("items"),
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _contradiction(entry: Mapping[str, Any]) -> Contradiction:
    cells = frozenset((cell["table"], cell.get("model"), cell.get("task")) for cell in entry["cells"])
    return Contradiction(id=entry["id"], said=entry["said"], here=entry["here"], cells=cells)


def _problems(scores: PublishedScores) -> list[str]:
    found = []
    for table in scores.tables:
        name = f"Table {table.number}"
        if table.form not in get_args(Form):
            found.append(f"{name}: form {table.form!r} is none of {', '.join(get_args(Form))}")
        parts = 1 if table.form == "points" else 2
        if parts == 1 and len(table.totals) != len(table.tasks):
            found.append(f"{name}: {len(table.totals)} totals for {len(table.tasks)} tasks")
        for row in table.rows:
            if row.source not in scores.sources:
                found.append(f"{name}, {row.model}: no source {row.source!r}")
            if len(row.values) != len(table.tasks) or any(len(value) != parts for value in row.values):
                found.append(f"{name}, {row.model}: not {parts} figures for each of {len(table.tasks)} tasks")
    known = {
        (table.number, model, task)
        for table in scores.tables
        for model in (None, *(row.model for row in table.rows))
        for task in (None, *table.tasks)
    }
    found += [
        f"{each.id}: there is no cell {cell}"
        for each in scores.contradictions
        for cell in sorted(each.cells - known, key=str)
    ]
    return found
