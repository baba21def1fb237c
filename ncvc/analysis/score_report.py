"""``python -m ncvc.report``: what is read, what is made of it, and the files: HTML, Markdown, JSON, PNG.

Reads score files, event files of TensorBoard and the report's own tables; nothing that writes those imports this. Equal
files make equal reports. Costs a few seconds, most of them matplotlib's. Does not: score, or run anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from ncvc.analysis.own_scores import find_scores, read_own_scores
from ncvc.analysis.published_scores import published_scores
from ncvc.analysis.score_figures import Figure, checkpoints_of, draw_losses, draw_scores
from ncvc.analysis.score_page import Report, as_data, as_html, as_markdown
from ncvc.analysis.score_tables import report_table, sheet_table
from ncvc.analysis.training_curves import Curve, find_runs, read_curve
from ncvc.settings import fits, hints_of, words
from ncvc.storage import whole_file, write_json

PAGE, TEXT, DATA = "report.html", "report.md", "report.json"
_PICTURES = ("figure_3.png", "figure_6.png", "figure_7.png")


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What ``conf/report.yaml`` says; ``ValueError`` names what cannot be. ``none`` alone is nothing."""

    home: str
    scores: tuple[str, ...]
    runs: tuple[str, ...]
    output: str | None

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """From the values of a configuration, in which one name may be typed as text, or none as null."""
        chosen = {field.name: values.get(field.name) for field in fields(cls)}
        return cls(**{**chosen, "scores": _names(chosen["scores"]), "runs": _names(chosen["runs"])})

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        found = [
            f"{field.name}={getattr(self, field.name)!r}: must be {words(hints[field.name])}."
            for field in fields(self)
            if not fits(getattr(self, field.name), hints[field.name])
        ]
        if not found:
            found = [
                f"{name}: an empty name; set a folder, all, or none."
                for name in ("scores", "runs")
                if any(not each.strip() for each in getattr(self, name))
            ]
        if found:
            raise ValueError("\n".join(found))

    @property
    def folder(self) -> Path:
        """Where the report goes."""
        return Path(self.output or Path(self.home) / "report").expanduser()


def _names(value: Any) -> Any:
    """A list of names from a list, one name, none, or null; anything else as it is, for the check of its type."""
    if value is None or value == "none":
        return ()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple):
        return value
    return tuple(name for name in names if name != "none")


def write_report(settings: ReportSettings, *, tell: Callable[[str], object]) -> Path:
    """Read everything, write the files, and return the page's place; ``tell`` gets lines about what is shown.

    ``ValueError`` or ``FileNotFoundError`` for a named file or run that is none, and when ``all`` of nothing is named.
    """
    home = Path(settings.home).expanduser()
    own = read_own_scores(find_scores(settings.scores, home=home))
    if settings.scores == ("all",) and not own:
        raise ValueError(
            f"scores=all: there are no scores under {home}/scores yet; make some with python -m ncvc.evaluate, name a "
            "folder with scores=FOLDER, or set scores=none for the published tables alone. And sweep is not set: "
            "sweep=FOLDER, or last, shows a sweep."
        )
    curves = _curves(settings, home=home, tell=tell)
    published = published_scores()
    points, left_out = checkpoints_of(own)
    remarks = [] if own else ["No score files were named: the tables below hold published rows only."]
    figures: list[Figure] = []
    try:
        drawn = (
            draw_losses(curves, kind="pretraining"),
            draw_scores(points, published, left_out=left_out),
            draw_losses(curves, kind="tuning"),
        )
        figures = [figure for figure in drawn if figure is not None]
    except ModuleNotFoundError as error:
        remarks.append(f"Figures were not drawn: {error}")
    if left_out and not points:
        remarks.append(
            f"Figure 6 needs models that recorded their tokens, and all questions answered: none of the {left_out} "
            "score files with IgakuQA has both."
        )
    report = Report(
        sheets=tuple(sheet_table(scores, place=place) for place, scores in enumerate(own, start=1)),
        tables=tuple(report_table(table, published, own) for table in published.tables),
        figures=tuple(figures),
        contradictions=published.contradictions,
        remarks=tuple(remarks),
    )
    page = _write(report, settings.folder)
    for remark in remarks:
        tell(remark)
    tell(f"{len(own)} score files, {len(curves)} runs, {len(figures)} figures")
    tell(f"report  {page}")
    tell(f"also    {TEXT}, {DATA}{''.join(f', {figure.name}.png' for figure in figures)}")
    return page


def _curves(settings: ReportSettings, *, home: Path, tell: Callable[[str], object]) -> list[Curve]:
    """The curves; a run that was not named itself may have none yet, which is told."""
    curves = []
    named = not {"all", "last"} & set(settings.runs)
    for folder in find_runs(settings.runs, home=home):
        try:
            curves.append(read_curve(folder))
        except ValueError as error:
            if named:
                raise
            tell(f"left out: {error}")
    return curves


def _write(report: Report, folder: Path) -> Path:
    """All files, each whole or not at all; pictures of an earlier report that this one lacks are removed."""
    pictures = {figure.name: f"{figure.name}.png" for figure in report.figures}
    for figure in report.figures:
        _write_bytes(folder / pictures[figure.name], figure.png)
    for name in set(_PICTURES) - set(pictures.values()):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / DATA, as_data(report))
    _write_bytes(folder / TEXT, as_markdown(report, pictures=pictures).encode("utf-8"))
    _write_bytes(folder / PAGE, as_html(report).encode("utf-8"))
    return folder / PAGE


def _write_bytes(path: Path, content: bytes) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder where the report puts a file; set another output.")
    with whole_file(path) as handle:
        handle.write(content)
