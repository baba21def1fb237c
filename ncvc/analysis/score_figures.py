"""Figures 3, 6 and 7 of the report from one's own runs: losses, and scores against tokens (R70, R82, R93).

Needs matplotlib (``pip install 'ncvc[figures]'``). Costs about a second each. Does not: smooth a curve, or draw what
the files do not hold.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

from ncvc.analysis.own_scores import OwnScores, count, interval, number, section
from ncvc.analysis.published_scores import PublishedScores
from ncvc.analysis.training_curves import Curve, Kind, run_name

_FONTS = ("Noto Sans CJK JP", "Noto Sans JP", "Hiragino Sans", "Yu Gothic", "IPAexGothic", "IPAGothic", "TakaoGothic")
_FONT_FILES = re.compile(
    r"NotoSansCJK-Regular|NotoSansCJKjp-Regular|NotoSansJP|ipaexg|ipag\.|TakaoGothic|YuGoth|Hiragino"
)
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B6BB1")
_LEGEND = 56  # columns of a name in a legend
MOST_CURVES = len(_COLOURS)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture: its name as a file, title, caption, PNG bytes, and the numbers in it as plain data."""

    name: str
    title: str
    caption: str
    png: bytes
    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model of ``series``: mean percent of IgakuQA's points over ``tasks``, corrected, with its 95% interval."""

    series: str
    tasks: tuple[str, ...]
    tokens: int
    percent: float
    low: float | None
    high: float | None
    chance: float | None


def checkpoints_of(own: Sequence[OwnScores]) -> tuple[list[Checkpoint], int]:
    """The own scores as points of Figure 6, by series and tokens, and how many could not be placed.

    A score of IgakuQA has no place where its model recorded no tokens, or items are unanswered. The interval of a mean
    over years joins theirs in quadrature, because the years' questions are independent. Of equal models scored twice,
    the last counts.
    """
    found: dict[tuple[str, tuple[str, ...], int], Checkpoint] = {}
    left_out = 0
    for scores in sorted(own, key=lambda each: (str(each.content.get("created")), str(each.path))):
        records = {name: record for name, record in sorted(scores.tasks.items()) if name.startswith("igakuqa")}
        if not records:
            continue
        whole = all(record.get("answered") == record.get("items") for record in records.values())
        values = [number(section(record, "corrected"), "percent") for record in records.values()]
        known = [value for value in values if value is not None]
        if scores.tokens_seen is None or not whole or len(known) < len(values):
            left_out += 1
            continue
        mean = sum(known) / len(known)
        ends = [interval(record) for record in records.values()]
        chances = [number(section(record, "chance"), "percent") for record in records.values()]
        guesses = [value for value in chances if value is not None]
        low = _joined([None if low is None else value - low for value, (low, _) in zip(known, ends, strict=True)])
        high = _joined([None if high is None else high - value for value, (_, high) in zip(known, ends, strict=True)])
        point = Checkpoint(
            series=_series(scores),
            tasks=tuple(records),
            tokens=scores.tokens_seen,
            percent=mean,
            low=None if low is None else mean - low,
            high=None if high is None else mean + high,
            chance=sum(guesses) / len(guesses) if len(guesses) == len(values) else None,
        )
        found[point.series, point.tasks, point.tokens] = point
    return [found[key] for key in sorted(found)], left_out


def _joined(lengths: Sequence[float | None]) -> float | None:
    """Half an interval of a mean of independent scores from half the interval of each."""
    known = [max(0.0, length) for length in lengths if length is not None]
    return math.hypot(*known) / len(known) if len(known) == len(lengths) else None


def _series(scores: OwnScores) -> str:
    """What belongs on one line: checkpoints of one run, asked in one way."""
    directory = scores.model.get("directory")
    run = scores.name
    if isinstance(directory, str) and directory:
        folder = Path(directory)
        run = run_name(folder.parent.parent if folder.parent.name in ("checkpoints", "models") else folder.parent)
    shots, method = scores.content.get("shots") or 0, str(scores.content.get("method") or "unknown method")
    return f"{run}, {shots}-shot, {method.replace('_', ' ')}"


def draw_scores(points: Sequence[Checkpoint], published: PublishedScores, *, left_out: int) -> Figure | None:
    """Figure 6: IgakuQA against tokens, with intervals, chance, and the report's two base models. None without points.

    ``ModuleNotFoundError`` without matplotlib.
    """
    if not points:
        return None
    lines: dict[tuple[str, tuple[str, ...]], list[Checkpoint]] = {}
    for point in points:
        lines.setdefault((point.series, point.tasks), []).append(point)
    theirs = _published_points(published)
    with _canvas() as (figure, axis):
        for (series, tasks), line in list(lines.items())[:MOST_CURVES]:
            label = f"{_short(series)} ({', '.join(task.removeprefix('igakuqa_') for task in tasks)})"
            ends = [[point.percent - _or(point.low, point.percent) for point in line],
                    [_or(point.high, point.percent) - point.percent for point in line]]  # fmt: skip
            colour = _COLOURS[len(axis.containers) % MOST_CURVES]
            axis.errorbar(
                [point.tokens for point in line], [point.percent for point in line], yerr=ends,
                color=colour, marker="o", markersize=5, linewidth=1.2, capsize=3, label=label,
            )  # fmt: skip
        axis.plot(*zip(*theirs, strict=True), "D", color="0.35", label="report's base models, mean of 2018-2022, cited")
        levels = sorted({round(point.chance, 1) for point in points if point.chance is not None})
        for level in levels:
            axis.axhline(level, color="black", linestyle="--", linewidth=1)
        if levels:
            axis.plot([], [], "k--", linewidth=1, label=f"guessing ({', '.join(f'{level:.1f}%' for level in levels)})")
        seen = [point.tokens for point in points] + [tokens for tokens, _ in theirs]
        if max(seen) > 20 * min(seen):
            axis.set_xscale("log")
        axis.set_ylim(bottom=0, top=1.35 * max(axis.get_ylim()[1], 20))
        axis.set_xlabel("tokens seen in training")
        axis.set_ylabel("% of IgakuQA's points, corrected")
        axis.legend(fontsize=8, loc="upper left")
        png = _png(figure)
    caption = (
        "Figure 6 (R93): mean share of IgakuQA's points of every scored checkpoint against the tokens it was trained "
        "on, with 95% intervals; dashed: what guessing scores. The report's own curve is not printed as numbers; "
        "its base models at 20 and 50 billion tokens are those of Table 2, as published."
    )
    if left_out:
        caption += f" {left_out} score files without a record of tokens, or with unanswered items, have no place in it."
    if len(lines) > MOST_CURVES:
        caption += f" {len(lines) - MOST_CURVES} further series are not drawn."
    data = {"checkpoints": [vars(point) for point in points], "published": [list(point) for point in theirs]}
    return Figure(name="figure_6", title="Figure 6: IgakuQA against tokens", caption=caption, png=png, data=data)


def _published_points(published: PublishedScores) -> list[tuple[float, float]]:
    """(tokens, mean percent over the five years) of the report's base models."""
    table = published.table(2)
    return [
        (
            float(row.tokens_seen),
            sum(100 * value[0] / total for value, total in zip(row.values, table.totals, strict=True))
            / len(table.totals),
        )
        for row in table.rows
        if row.tokens_seen is not None
    ]


def _short(name: str) -> str:
    """A name for a legend: plain text to matplotlib, on one line, its end where it is long."""
    plain = " ".join(name.split()).replace("$", "\\$").lstrip("_")
    widths = list(itertools.accumulate(2 if east_asian_width(character) in "WF" else 1 for character in plain[::-1]))
    fitting = sum(width <= _LEGEND for width in widths)
    return plain if fitting == len(plain) else f"…{plain[len(plain) - fitting :]}"


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def draw_losses(curves: Sequence[Curve], *, kind: Kind) -> Figure | None:
    """Figure 3 (pretraining, with tokens above) or 7 (tuning) from runs of that kind; None where there are none.

    ``ModuleNotFoundError`` without matplotlib.
    """
    chosen = [curve for curve in curves if curve.kind == kind]
    if not chosen:
        return None
    name, title = ("figure_3", "Figure 3: loss of pretraining") if kind == "pretraining" else (
        "figure_7", "Figure 7: loss of tuning")  # fmt: skip
    drawn = chosen[-MOST_CURVES:]
    ratio = _one_ratio(drawn)
    with _canvas() as (figure, axis):
        for colour, curve in zip(_COLOURS, drawn, strict=False):
            axis.plot(
                *zip(*curve.losses, strict=True), color=colour, linewidth=1.1, label=f"{_short(curve.name)}, training"
            )
            if curve.held_out:
                style = {"color": colour, "marker": "o", "markersize": 4, "linestyle": ":", "linewidth": 0.8}
                axis.plot(*zip(*curve.held_out, strict=True), label=f"{_short(curve.name)}, held out", **style)
        axis.set_xlabel("optimizer steps")
        axis.set_ylabel("cross entropy, nats per token")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0, top=1.03 * axis.get_ylim()[1])
        if ratio is not None:
            above = axis.secondary_xaxis("top", functions=(lambda step: step * ratio, lambda tokens: tokens / ratio))
            above.set_xlabel("tokens seen")
            above.xaxis.set_major_formatter(lambda value, place: count(value))
        axis.legend(fontsize=8)
        png = _png(figure)
    caption = f"{title.split(':')[0]} ({'R70' if kind == 'pretraining' else 'R82'}): as logged, not smoothed."
    if kind == "pretraining" and ratio is None and any(curve.tokens for curve in drawn):
        caption += " The runs differ in tokens per step, so there is no axis of tokens."
    if lost := sum(curve.not_finite for curve in drawn):
        caption += f" {lost} losses were not finite and are left out."
    if len(chosen) > len(drawn):
        caption += f" Of {len(chosen)} runs the last {len(drawn)} are drawn."
    data = {"runs": [{name: value for name, value in vars(curve).items() if name != "folder"} for curve in drawn]}
    return Figure(name=name, title=title, caption=caption, png=png, data=data)


def _one_ratio(curves: Sequence[Curve]) -> float | None:
    """Tokens per step, where all curves share it."""
    ratios = [curve.tokens_per_step for curve in curves]
    known = [ratio for ratio in ratios if ratio is not None]
    if len(known) < len(ratios) or not known or max(known) > 1.01 * min(known):
        return None
    return known[0]


@contextlib.contextmanager
def _canvas() -> Iterator[tuple[Any, Any]]:
    """A figure and its axis, closed at the end; nothing of matplotlib's own settings is changed for others."""
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise ModuleNotFoundError("figures need matplotlib: pip install 'ncvc[figures]'") from error
    with matplotlib.rc_context({"font.family": ["DejaVu Sans", *_japanese_fonts()], "axes.unicode_minus": False}):
        figure = Canvas(figsize=(7.6, 4.6), dpi=140, layout="constrained")
        axis = figure.add_subplot()
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
        yield figure, axis


@functools.lru_cache(maxsize=1)
def _japanese_fonts() -> tuple[str, ...]:
    """A font for Japanese names, also one that was installed after matplotlib made its list; none is ()."""
    from matplotlib import font_manager

    listed = set(font_manager.get_font_names())
    if known := [font for font in _FONTS if font in listed]:
        return (known[0],)
    for path in sorted(font_manager.findSystemFonts()):
        if _FONT_FILES.search(Path(path).name):
            font_manager.fontManager.addfont(path)
            return (font_manager.fontManager.ttflist[-1].name,)
    return ()


def _png(figure: Any) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()
