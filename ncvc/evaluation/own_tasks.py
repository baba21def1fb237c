"""Tasks from any .csv, .tsv or .jsonl file of one's own: which column is the question, which the answer.

Kinds: ``choice`` (one letter), ``letters`` (several; "B,D", "BD" or a list), ``number``, and ``spans`` (a JSON or
Python list of the passages to be extracted). Options stand in one column each, or all in one as a list. Every row must
be askable and have a right answer that can be given: a letter that is no option, an empty answer or a span that is not
in the passage are refused, all rows of the file at once, by file and row.

Costs: the file in memory. Does not: show pictures, draw demonstrations, or guess columns (but ``optionA``, ``optionB``
..., ``options`` and ``choices``, which are looked for when no options are set).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

from ncvc.chat import Message
from ncvc.evaluation.benchmark_rows import Record, Records, parse_json, read_records, refuse
from ncvc.evaluation.item import Item, Kappa, Kind, Task
from ncvc.evaluation.jmed_llm import CHOICE_INSTRUCTION, SPANS_INSTRUCTION, passage_of
from ncvc.evaluation.jmmlu import choice_prompt
from ncvc.evaluation.spans import clean_span, parse_python_strings
from ncvc.settings import settings_from

LETTERS = string.ascii_uppercase
LETTERS_INSTRUCTION = "次の問いに、正しい選択肢の記号をちょうど{wanted}個、カンマで区切って書いて答えてください。"
NUMBER_INSTRUCTION = "次の問いに、数だけを書いて答えてください。"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(?:\.[0-9]{1,30})?")
_OPTION = re.compile(r"option[ _]?([A-Z])")


@dataclass(frozen=True, kw_only=True)
class OwnTask:
    """Where a task of one's own lies and what its columns mean; all but the first three have defaults.

    ``options``: the columns of the options in order, or the one column that holds them as a list; null: looked for.
    ``passage``: the column of the text that spans come from; null: the 「…」 at the end of the question, else the
    question. ``id``, ``tag``, ``group`` (the document): columns, null for none; the id is then the row's number.
    ``kappa``: unweighted, linear (ordered options) or null. ``instruction``: the first line of what is asked; with
    letters, ``{wanted}`` in it becomes their number.
    """

    name: str
    path: str
    kind: Kind
    question: str = "question"
    answer: str = "answer"
    options: str | tuple[str, ...] | None = None
    passage: str | None = None
    id: str | None = None
    tag: str | None = None
    group: str | None = None
    kappa: Kappa | None = None
    instruction: str | None = None

    def __post_init__(self) -> None:
        where = f"benchmarks.own.{self.name}"
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{where}: a task's name has letters, digits and _ . - only; rename it.")
        if self.kind not in get_args(Kind):
            raise ValueError(f"{where}.kind={self.kind!r} is none of {', '.join(get_args(Kind))}; set one of these.")
        if self.kappa not in (None, *get_args(Kappa)):
            raise ValueError(f"{where}.kappa={self.kappa!r}: set {', '.join(get_args(Kappa))} or null.")
        if self.kappa and self.kind != "choice":
            raise ValueError(
                f"{where}.kappa={self.kappa}: kappa is for kind choice, and this is {self.kind}; set null."
            )
        if self.options and self.kind in ("number", "spans"):
            raise ValueError(f"{where}.options: kind {self.kind} has no options; set null.")


def own_task_settings(own: Mapping[str, Any]) -> list[OwnTask]:
    """The group ``benchmarks.own``, {name: {path, kind, ...}}; one ``ValueError`` for what is wrong with it."""
    found, problems = [], []
    for name, values in own.items():
        if not isinstance(values, Mapping):
            problems.append(f"benchmarks.own.{name}={values!r}: must be a group of settings: path, kind, ...")
            continue
        try:
            found.append(settings_from(OwnTask, {**values, "name": str(name)}, path=f"benchmarks.own.{name}"))
        except ValueError as error:
            problems.append(str(error))
    refuse(problems)
    return found


def own_task(settings: OwnTask) -> Task:
    """The task of one file; ``FileNotFoundError`` or ``ValueError`` name columns, or every bad row."""
    path = Path(settings.path).expanduser()
    records = read_records(path)
    if records.rows or records.columns:
        options = _option_columns(settings, records)
        _check_columns(settings, records, options)
    items: list[Item] = []
    problems = list(records.problems)
    places: dict[str, str] = {}
    for record in records.rows:
        try:
            item = _item(record, settings=settings, options=options)
            if item.id in places:
                raise ValueError(f"the id {item.id!r} stands in {places[item.id]} already; ids have to differ.")
        except ValueError as error:
            problems.append(f"{record.where}: {error}")
            continue
        places[item.id] = record.where
        items.append(item)
    refuse(problems)
    source = {"files": {path.name: records.sha256}}
    return Task(name=settings.name, family="own", items=tuple(items), kappa=settings.kappa, source=source)


def _option_columns(settings: OwnTask, records: Records) -> list[str]:
    """The columns of the options: several, one each, or one that holds lists; [] for kinds without options."""
    if settings.kind not in ("choice", "letters"):
        return []
    if settings.options:
        return [settings.options] if isinstance(settings.options, str) else list(settings.options)
    found = sorted(name for name in records.columns if _OPTION.fullmatch(name))
    if not found:
        found = [name for name in records.columns if name in ("options", "choices")][:1]
    if not found:
        raise ValueError(
            f"benchmarks.own.{settings.name}.options is not set, and {settings.path} has no columns optionA, optionB "
            f"... and none named options or choices; its columns are {', '.join(map(repr, records.columns))}."
        )
    return found


def _check_columns(settings: OwnTask, records: Records, options: Sequence[str]) -> None:
    named = {key: getattr(settings, key) for key in ("question", "answer", "passage", "id", "tag", "group")}
    wanted = [(key, column) for key, column in named.items() if column is not None] + [("options", c) for c in options]
    missing = [
        f"{column!r} (benchmarks.own.{settings.name}.{key})" for key, column in wanted if column not in records.columns
    ]
    if missing:
        raise ValueError(
            f"{settings.path} lacks the column {', '.join(missing)}; "
            f"its columns are {', '.join(map(repr, records.columns)) or 'none'}."
        )


def _item(record: Record, *, settings: OwnTask, options: Sequence[str]) -> Item:
    question = _text(record, settings.question)
    passage = _text(record, settings.passage) if settings.passage else ""
    texts = _options(record, options) if options else ()
    letters = tuple(LETTERS[: len(texts)])
    answer = record.cells.get(settings.answer)
    if (
        answer is None
        or (isinstance(answer, str | list) and not answer)
        or (isinstance(answer, str) and answer.isspace())
    ):
        raise ValueError(f"the answer (column {settings.answer!r}) is empty; a row without one cannot be scored.")
    gold: tuple[str, ...]
    if settings.kind == "number":
        gold = (_number(answer),)
    elif settings.kind == "spans":
        source = passage or passage_of(question) or ""
        gold = _spans(answer, source)
        passage = source or question
    else:
        gold = _letters(answer, letters, single=settings.kind == "choice")
    name = record.cells.get(settings.id) if settings.id else record.number
    if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
        raise ValueError(f"the id (column {settings.id!r}) is {str(name)[:40]!r}; it has to be text or a whole number.")
    return Item(
        id=str(name),
        task=settings.name,
        kind=settings.kind,
        messages=(Message("user", _asked(settings, question, record, texts, letters, len(gold))),),
        gold=gold,
        letters=letters,
        options=texts,
        wanted=len(gold) if settings.kind == "letters" else 1,
        passage=passage if settings.kind == "spans" else "",
        group=_label(record, settings.group),
        tag=_label(record, settings.tag),
        metadata={"question": question},
    )


def _asked(
    settings: OwnTask, question: str, record: Record, texts: Sequence[str], letters: Sequence[str], wanted: int
) -> str:
    usual = {"choice": CHOICE_INSTRUCTION, "letters": LETTERS_INSTRUCTION, "number": NUMBER_INSTRUCTION}
    instruction = settings.instruction or usual.get(settings.kind, SPANS_INSTRUCTION)
    if settings.kind == "letters":
        instruction = instruction.replace("{wanted}", str(wanted))
    if settings.passage:
        question = f"{question}\n「{_text(record, settings.passage)}」"
    return choice_prompt(question, texts, letters, instruction=instruction)


def _text(record: Record, column: str) -> str:
    value = record.cells.get(column)
    if not isinstance(value, str):
        raise ValueError(f"column {column!r} is {str(value)[:40]!r}; it has to be text.")
    if not value.strip():
        raise ValueError(f"column {column!r} is empty; every row needs it.")
    return value


def _label(record: Record, column: str | None) -> str:
    value = record.cells.get(column) if column else None
    return "" if value is None else str(value)


def _options(record: Record, columns: Sequence[str]) -> tuple[str, ...]:
    """The texts of the options; empty cells may stand only at the end."""
    cells = [record.cells.get(column) for column in columns]
    if len(columns) == 1:
        value = cells[0]
        listed = _parsed_list(value) if isinstance(value, str) else value
        if not isinstance(listed, list):
            raise ValueError(f"the options (column {columns[0]!r}) are {str(value)[:40]!r}; they have to be a list.")
        cells = listed
    texts = ["" if cell is None else str(cell) if isinstance(cell, int | float) else cell for cell in cells]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("the options have to be texts, and one is a list or an object.")
    while texts and not texts[-1].strip():
        texts.pop()
    if len(texts) < 2 or len(texts) > len(LETTERS) or not all(text.strip() for text in texts):
        raise ValueError(
            f"has the options {str(texts)[:80]}; there have to be 2 to {len(LETTERS)}, and none empty in between."
        )
    return tuple(texts)


def _letters(answer: Any, letters: Sequence[str], *, single: bool) -> tuple[str, ...]:
    parts = answer if isinstance(answer, list) else [answer]
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(f"the answer is {str(answer)[:40]!r}; it has to name letters out of {', '.join(letters)}.")
    named = re.sub(r"[\s,、・/;]", "", unicodedata.normalize("NFKC", "".join(parts))).upper()
    if not named or not {*named} <= {*letters}:
        raise ValueError(f"the answer is {str(answer)[:40]!r}; it has to name letters out of {', '.join(letters)}.")
    if len(set(named)) != len(named) or (single and len(named) != 1):
        count = "one letter" if single else "each letter once"
        raise ValueError(f"the answer is {str(answer)[:40]!r}; kind {'choice' if single else 'letters'} takes {count}.")
    return tuple(sorted(named))


def _number(answer: Any) -> str:
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise ValueError(f"the answer is {str(answer)[:40]!r}; it has to be a number.")
    written = format(Decimal(str(answer)), "f") if isinstance(answer, float) else str(answer)
    text = unicodedata.normalize("NFKC", written).replace(",", "").strip()
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"the answer is {text[:40]!r}; it has to be a number in digits, such as 12 or 0.5.")
    return text


def _parsed_list(text: str) -> list[Any] | None:
    try:
        value = parse_json(text)
    except ValueError:
        value = parse_python_strings(text)
    return value if isinstance(value, list) else None


def _spans(answer: Any, passage: str) -> tuple[str, ...]:
    listed = _parsed_list(answer) if isinstance(answer, str) else answer
    if not isinstance(listed, list) or not all(isinstance(span, str) and span.strip() for span in listed):
        raise ValueError(f'the answer is {str(answer)[:40]!r}; it has to be a list of texts, none empty: ["a", "b"].')
    if not listed:
        raise ValueError("the answer is an empty list; a row without spans to find cannot be scored.")
    if passage:
        plain = "".join(clean_span(passage).split())
        for span in listed:
            if "".join(clean_span(span).split()) not in plain:
                raise ValueError(f"the span {span[:40]!r} does not stand in the passage, so it cannot be extracted.")
    return tuple(listed)
