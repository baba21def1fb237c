"""A sweep's folder read as a table: one row per job, mean and spread over seeds, the largest stable learning rate.

Reads ``sweep.json`` (which jobs), and per job ``job.json`` (how it ended) and ``result.json`` (its figures). Writes
``summary.md``, ``summary.csv`` (one line per job) and, for TensorBoard, ``summary/`` into the sweep's folder. Jobs that
failed, died, hung or never started are rows like the others, with their reason. Costs seconds; runs nothing.

A learning rate is called stable for a variant when every seed finished at it without a single loss spike and ended,
on held-out text, below the bits per character of the unigram model, so with more than the frequency of each token.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncvc.supervision import read_job
from ncvc.sweep_folder import read_plan

SEED, LEARNING_RATE = "seed", "optimizer.learning_rate"
_FIGURES: dict[str, tuple[str | None, str]] = {  # column -> group and key in result.json
    "bits_per_character": ("held_out_after", "held_out/bits_per_character"),
    "nats_per_token": ("held_out_after", "held_out/nats_per_token"),
    "unigram_bits_per_character": (None, "unigram_bits_per_character"),
    "spikes": ("stability", "spikes"),
    "first_spike": ("stability", "first_spike"),
    "spike_score": ("stability", "spike_score"),
    "largest_gradient_norm": ("stability", "largest_gradient_norm"),
}


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """One job: its settings (override -> value), how it ended, its figures (None: not there, or not finite)."""

    number: int
    settings: dict[str, str]
    status: str
    reason: str
    seconds: float | None
    attempts: int
    folder: Path
    figures: dict[str, float | None]

    @property
    def finished(self) -> bool:
        """Whether it went through to its last step."""
        return self.status == "finished"


@dataclass(frozen=True, kw_only=True)
class Group:
    """The jobs that differ only in their seed. ``settings`` are those that vary within the sweep."""

    settings: dict[str, str]
    rows: list[JobRow]

    def values(self, figure: str) -> list[float]:
        """A figure of the finished jobs that have it."""
        found = [row.figures[figure] for row in self.rows if row.finished]
        return [value for value in found if value is not None]

    def mean(self, figure: str) -> float | None:
        """Mean over the seeds."""
        return statistics.fmean(values) if (values := self.values(figure)) else None

    def deviation(self, figure: str) -> float | None:
        """Sample standard deviation over the seeds (n - 1); None for fewer than two."""
        return statistics.stdev(values) if len(values := self.values(figure)) > 1 else None

    def is_stable(self) -> bool:
        """The module's definition of a stable learning rate."""
        for row in self.rows:
            unigram, final = row.figures["unigram_bits_per_character"], row.figures["bits_per_character"]
            if not row.finished or row.figures["spikes"] != 0 or unigram is None or final is None or final >= unigram:
                return False
        return True


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All jobs of a sweep in order; ``axes`` are the settings in which they differ, in the order of the overrides."""

    folder: Path
    rows: list[JobRow]
    axes: list[str]

    def groups(self) -> list[Group]:
        """The jobs gathered over seeds, in the order of their first job."""
        kept = [axis for axis in self.axes if axis != SEED]
        found: dict[tuple[str, ...], list[JobRow]] = {}
        for row in self.rows:
            found.setdefault(tuple(row.settings.get(axis, "") for axis in kept), []).append(row)
        return [Group(settings=dict(zip(kept, key, strict=True)), rows=rows) for key, rows in found.items()]

    def variants(self) -> dict[str, list[Group]]:
        """Groups gathered over learning rates (smallest first), by what else varies; empty without such an axis."""
        if LEARNING_RATE not in self.axes:
            return {}
        found: dict[str, list[Group]] = {}
        for group in self.groups():
            others = {axis: value for axis, value in group.settings.items() if axis != LEARNING_RATE}
            found.setdefault(" ".join(short_setting(*item) for item in others.items()) or "all", []).append(group)
        return {name: sorted(groups, key=learning_rate) for name, groups in found.items()}


def learning_rate(group: Group) -> float:
    """The learning rate of a group."""
    return float(group.settings[LEARNING_RATE])


def short_setting(name: str, value: str) -> str:
    """A setting as a label: a choice of a group by its name alone, the rest with the last part of the name."""
    return value if "/" in name or name in ("model", "optimizer", "trainer") else f"{name.rpartition('.')[2]}={value}"


def final_bits_per_character(folder: Path) -> float | None:
    """Held-out bits per character at the end of the run in ``folder``; None when there are none, or not finite."""
    return _figure(_read_result(folder), *_FIGURES["bits_per_character"])


def read_sweep(folder: Path) -> Sweep:
    """Read every job of a sweep, also of one that still runs.

    Raises ``FileNotFoundError`` when there is none, ``ValueError`` for a folder of several sweeps or a broken record.
    """
    folder = Path(folder)
    if several := sorted(path.parent for path in folder.glob("*/multirun.yaml")):
        raise ValueError(f"{folder} holds several sweeps; set one of them, such as {several[-1]}")
    number_of = {tuple(overrides): number for number, overrides in read_plan(folder).items()}
    rows = []
    for place, job_folder in enumerate(sorted(path.parent for path in folder.rglob("job.json"))):
        record = read_job(job_folder) or {}
        by_name = int(job_folder.name) if job_folder.name.isdigit() else place
        rows.append(_row(number_of.pop(tuple(record.get("overrides", [])), by_name), job_folder, record))
    for overrides, number in number_of.items():
        record = {"overrides": overrides, "status": "not started", "reason": ""}
        rows.append(_row(number, folder / str(number), record))
    if not rows:
        raise FileNotFoundError(
            f"{folder} holds no sweep (no sweep.json, no job.json below it); set the folder that a sweep printed, "
            "such as .ncvc/sweeps/<name>/<time>"
        )
    rows.sort(key=lambda row: row.number)
    names = list(dict.fromkeys(name for row in rows for name in row.settings))
    axes = [name for name in names if len({row.settings.get(name) for row in rows}) > 1]
    return Sweep(folder=folder, rows=rows, axes=axes)


def newest_sweep(home: Path) -> Path:
    """The sweep under ``home`` that was started last; ``FileNotFoundError`` when there is none."""
    found = [path.parent for path in Path(home).expanduser().glob("sweeps/*/*/multirun.yaml")]
    if not found:
        raise FileNotFoundError(f"there is no sweep under {home}/sweeps; name one: sweep=FOLDER")
    return max(found, key=lambda folder: (folder.name, folder))  # named by the time of their start


def _row(number: int, folder: Path, record: Mapping[str, Any]) -> JobRow:
    pairs = [text.partition("=") for text in record.get("overrides", [])]
    result = _read_result(folder)
    return JobRow(
        number=number,
        settings={key.lstrip("+~"): value.strip("'\"") for key, _, value in pairs},
        status=str(record.get("status", "unknown")),
        reason=str(record.get("reason", "")),
        seconds=record.get("seconds"),
        attempts=int(record.get("attempts", 0)),
        folder=folder,
        figures={name: _figure(result, group, key) for name, (group, key) in _FIGURES.items()},
    )


def _read_result(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not the result of a run ({error}); remove it and run the job again") from error


def _figure(result: Mapping[str, Any], group: str | None, key: str) -> float | None:
    value = (result if group is None else result.get(group) or {}).get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def largest_stable_rate(groups: Sequence[Group]) -> float | None:
    """The largest learning rate of a variant that is stable by the module's definition; None when none is."""
    return max((learning_rate(group) for group in groups if group.is_stable()), default=None)


def job_table(sweep: Sweep) -> list[list[str]]:
    """Header and one line per job."""
    header = ["job", *(axis.rpartition(".")[2] for axis in sweep.axes), "status", "bits/character", "spikes"]
    table = [[*header, "first spike", "spike score", "largest norm", "seconds"]]
    for row in sweep.rows:
        figures = row.figures
        table.append(
            [
                str(row.number),
                *(row.settings.get(axis, "") for axis in sweep.axes),
                row.status,
                _text(figures["bits_per_character"], ".4f"),
                _text(figures["spikes"], ".0f"),
                _first_spike([row]),
                _text(figures["spike_score"], ".4f"),
                _text(figures["largest_gradient_norm"], ".3g"),
                _text(row.seconds, ".0f"),
            ]
        )
    return table


def group_table(sweep: Sweep) -> list[list[str]]:
    """Header and one line per combination of settings, over its seeds: mean +- sample standard deviation, and n."""
    kept = [axis for axis in sweep.axes if axis != SEED]
    header = [*(axis.rpartition(".")[2] for axis in kept), "finished", "bits/character", "spikes per job"]
    table = [[*header, "first spike (median)", "spike score", "largest norm"]]
    for group in sweep.groups():
        table.append(
            [
                *group.settings.values(),
                f"{sum(row.finished for row in group.rows)}/{len(group.rows)}",
                _mean_and_deviation(group, "bits_per_character", ".4f"),
                _mean_and_deviation(group, "spikes", ".1f"),
                _first_spike(group.rows),
                _mean_and_deviation(group, "spike_score", ".4f"),
                _text(max(group.values("largest_gradient_norm"), default=None), ".3g"),
            ]
        )
    return table


def stability_table(sweep: Sweep) -> list[list[str]]:
    """Header and one line per variant: its largest stable learning rate and what came out at it."""
    table = [["variant", "largest stable learning rate", "bits/character there"]]
    for name, groups in sweep.variants().items():
        rate = largest_stable_rate(groups)
        at = [group for group in groups if learning_rate(group) == rate]
        reached = _mean_and_deviation(at[0], "bits_per_character", ".4f") if at else "-"
        table.append([name, "none of these" if rate is None else f"{rate:g}", reached])
    return table


def _first_spike(rows: Sequence[JobRow]) -> str:
    """Median step of the first spike over the jobs that had one, and how many those are; ``none``; ``-`` unknown."""
    known = [row for row in rows if row.figures["spikes"] is not None]
    steps = [row.figures["first_spike"] for row in known if row.figures["first_spike"] is not None]
    if not steps:
        return "none" if known else "-"
    median = f"{statistics.median(steps):g}"
    return median if len(rows) == 1 else f"{median} (in {len(steps)} of {len(known)})"


def _mean_and_deviation(group: Group, figure: str, form: str) -> str:
    mean, deviation = group.mean(figure), group.deviation(figure)
    if mean is None:
        return "-"
    return f"{mean:{form}}" + ("" if deviation is None else f" ± {deviation:{form}}")


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def aligned(table: Sequence[Sequence[str]]) -> str:
    """A table as text with columns of equal width."""
    widths = [max(len(line[place]) for line in table) for place in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


def summary_sections(sweep: Sweep) -> list[tuple[str, list[list[str]]]]:
    """(title, table) of everything the summary shows; what the sweep has no axis for is left out."""
    finished = sum(row.finished for row in sweep.rows)
    sections = [(f"{finished} of {len(sweep.rows)} jobs finished", job_table(sweep))]
    if SEED in sweep.axes:
        sections.append(("Over seeds: mean ± sample standard deviation", group_table(sweep)))
    if sweep.variants():
        title = "Largest stable learning rate: every seed finished, without a spike, below the unigram model"
        sections.append((title, stability_table(sweep)))
    return sections


def unfinished_jobs(sweep: Sweep) -> list[str]:
    """One message for each job that has not finished: which, why, and where its output lies."""
    found = []
    for row in sweep.rows:
        if not row.finished:
            name = " ".join(f"{axis}={row.settings.get(axis, '')}" for axis in sweep.axes)
            where = f" ({row.folder}/output.txt)" if row.attempts else ""
            found.append("\n".join([f"job {row.number} ({name}) {row.status}{where}", *row.reason.splitlines()]))
    return found


def summarize_sweep(folder: Path) -> str:
    """Write the summary's files and figures into the sweep's folder; returns it as text, with where all of it lies."""
    from ncvc.analysis.sweep_figures import draw_figures, write_tensorboard_view

    folder, sweep = Path(folder), read_sweep(folder)
    sections, unfinished = summary_sections(sweep), unfinished_jobs(sweep)
    text = [f"{title}\n{aligned(table)}" for title, table in sections]
    page = [f"## {title}\n\n{markdown(table)}" for title, table in sections]
    if unfinished:
        text.append("Not finished\n" + "\n".join(message.replace("\n", "\n    ") for message in unfinished))
        page.append("## Not finished\n\n" + "\n".join("- " + " / ".join(text.splitlines()) for text in unfinished))
    figures, drawn = draw_figures(sweep)
    written = "\n\n".join([f"# Sweep {folder.name}", *page, *(f"![{place.stem}]({place.name})" for place in drawn)])
    _write(folder / "summary.md", written + "\n")
    _write(folder / "summary.csv", _as_csv(sweep))
    write_tensorboard_view(sweep, "\n\n".join(page))
    places = ["summary      " + f"{folder}/summary.md, summary.csv", *figures]
    return "\n".join(
        ["", "\n\n".join(text), "", *places, f"TensorBoard  tensorboard --logdir {shlex.quote(str(folder))}"]
    )


def _as_csv(sweep: Sweep) -> str:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["job", *sweep.axes, "status", "reason", "attempts", "seconds", *_FIGURES, "folder"])
    for row in sweep.rows:
        settings = [row.settings.get(axis, "") for axis in sweep.axes]
        figures = ["" if value is None else repr(value) for value in row.figures.values()]
        writer.writerow(
            [row.number, *settings, row.status, row.reason, row.attempts, row.seconds, *figures, row.folder]
        )
    return lines.getvalue()


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
