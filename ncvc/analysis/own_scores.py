"""One's own score files: found by name, read, and taken apart without trusting that every part is there.

A ``scores.json`` is what `ncvc.evaluate` writes (`ncvc.evaluation.sheet`). Costs milliseconds. Does not: score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncvc.evaluation.sheet import SCORES, read_scores


@dataclass(frozen=True, kw_only=True)
class OwnScores:
    """One ``scores.json``: where it lies, what was asked how, and its tasks by name, as in the file."""

    path: Path
    content: Mapping[str, Any]

    @property
    def model(self) -> Mapping[str, Any]:
        """What is known of the model."""
        found = self.content.get("model")
        return found if isinstance(found, Mapping) else {}

    @property
    def tasks(self) -> Mapping[str, Mapping[str, Any]]:
        """The records by name of the task."""
        return {str(task["task"]): task for task in self.content["tasks"]}

    @property
    def training(self) -> Mapping[str, Any]:
        """What the model recorded of its training; empty where nothing is known."""
        found = self.model.get("training")
        return found if isinstance(found, Mapping) else {}

    @property
    def tokens_seen(self) -> int | None:
        """Tokens of training, or None."""
        found = number(self.training, "tokens_seen")
        return int(found) if found is not None and found > 0 else None

    @property
    def place(self) -> str:
        """The file with the two folders above it: enough to find it, and the same wherever home is."""
        return "/".join(self.path.parts[-3:])

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.model.get("name") or "unnamed model")

    @property
    def asked(self) -> str:
        """How it was asked, and the tokens it had seen."""
        parts = [f"split {self.content.get('split') or 'unknown'}"]
        if self.content.get("fold") is not None:
            parts[0] += f" {self.content['fold']}"
        parts.append(f"{self.content.get('shots') or 0}-shot")
        parts.append(str(self.content.get("method") or "unknown method").replace("_", " "))
        return ", ".join([*parts, *([] if self.tokens_seen is None else [f"{count(self.tokens_seen)} tokens"])])


def count(number: float) -> str:
    """A count in words of at most three digits: 491 k, 20.1 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def find_scores(names: Sequence[str], *, home: Path) -> list[Path]:
    """The score files that are named: ``all`` under ``<home>/scores``, files, or folders that hold some, at any depth.

    ``FileNotFoundError`` for a name with none; ``all`` may be nothing.
    """
    root = Path(home).expanduser() / "scores"
    found: list[Path] = []
    for name in names:
        if name == "all":
            found += sorted(root.rglob(SCORES)) if root.is_dir() else []
            continue
        given = Path(name).expanduser()
        places = [given] if given.is_absolute() else [given, root / name]
        below = [[place] if place.is_file() else sorted(place.rglob(SCORES)) for place in places]
        chosen = next(filter(None, below), None)
        if chosen is None:
            raise FileNotFoundError(
                f"scores={name}: there is no {SCORES} there. Name a folder that python -m ncvc.evaluate wrote "
                "(.ncvc/scores/<model>/<settings>), all, or none."
            )
        found += chosen
    return list(dict.fromkeys(path.absolute() for path in found))


def read_own_scores(paths: Iterable[Path]) -> list[OwnScores]:
    """The files, by model and by how they were asked. ``ValueError`` names a file that is not one of scores."""
    found = []
    for path in paths:
        scores = OwnScores(path=path, content=read_scores(path))
        for task in scores.content["tasks"]:
            if not isinstance(task, Mapping) or not isinstance(task.get("task"), str):
                raise ValueError(f"{path}: a task without a name; score the answers again: ncvc.evaluate score=FOLDER.")
        found.append(scores)
    return sorted(found, key=lambda each: (each.name, each.tokens_seen or 0, each.asked, str(each.path)))


# --- parts of a record
def rivals(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What the record's score is held against besides chance, by name: the constant answer and the baselines."""
    majority = section(record, "majority")
    named = {str(majority.get("name") or "constant answer"): majority} if majority else {}
    entries = {**named, **section(record, "baselines")}
    return {str(name): entry for name, entry in entries.items() if isinstance(entry, Mapping)}


def section(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a record; empty where there is none."""
    found = record.get(name)
    return found if isinstance(found, Mapping) else {}


def number(record: Mapping[str, Any], name: str) -> float | None:
    """A finite number of a record, or None."""
    found = record.get(name)
    if not isinstance(found, int | float) or isinstance(found, bool):
        return None
    try:
        return float(found) if math.isfinite(found) else None
    except OverflowError:  # a whole number beyond any float
        return None


def interval(record: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The ends of the corrected score's interval, the wider of items and documents; None where there is none."""
    found = section(record, "interval")
    ends = []
    for part in (found, section(found, "documents")):
        pair = section(part, "corrected").get(str(record.get("metric")))
        if isinstance(pair, list | tuple) and len(pair) == 2:
            low, high = (number({"end": end}, "end") for end in pair)
            if low is not None and high is not None:
                ends.append((low, high))
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (None, None)
