"""A sweep for the eye: figures of a sweep over learning rates, and the view that TensorBoard shows of any sweep.

``loss_curves.png``: one panel per variant and learning rate, each seed thin, their mean thick, spikes as ticks.
``stability.png``: variant x learning rate, final held-out bits per character, with the number of spikes. Both need
matplotlib (``pip install 'ncvc[figures]'``). The curves come from ``samples.jsonl``, which has every step:
TensorBoard's are means over several, in which a spike of one step drowns.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

from ncvc.analysis.sweeps import Group, JobRow, Sweep, largest_stable_rate, learning_rate

_MISSING = "matplotlib is not installed, so no figures were drawn; pip install 'ncvc[figures]' and repeat"


def loss_curve(row: JobRow) -> list[tuple[int, float]]:
    """(step, training loss in nats per token) of every step of a job's run; not finite: nan. Empty without a record."""
    path = row.folder / "samples.jsonl"
    points = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        loss = float(record["loss"])  # JSON has no NaN: it is text there
        points.append((int(record["step"]), loss if math.isfinite(loss) else math.nan))
    return points


def spiked_steps(row: JobRow) -> list[int]:
    """Steps of a job's spikes, in order."""
    path = row.folder / "spikes.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return sorted(int(json.loads(line)["step"]) for line in lines if line.endswith("}"))


def mean_curve(curves: list[list[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Mean over seeds at each step that all of them reached."""
    losses: dict[int, list[float]] = {}
    for curve in curves:
        for step, loss in curve:
            losses.setdefault(step, []).append(loss)
    return [(step, statistics.fmean(found)) for step, found in sorted(losses.items()) if len(found) == len(curves)]


def draw_figures(sweep: Sweep) -> tuple[list[str], list[Path]]:
    """Draw both figures into the sweep's folder; returns lines that say so, or why there are none, and their places."""
    variants = sweep.variants()
    if not variants:
        return [], []
    try:
        import matplotlib
    except ImportError:
        return [_MISSING], []
    matplotlib.use("Agg")
    places = [sweep.folder / "loss_curves.png", sweep.folder / "stability.png"]
    _draw_curves(variants, places[0])
    _draw_map(variants, places[1])
    return [f"figures      {places[0]}, {places[1].name}"], places


def _rates(variants: dict[str, list[Group]]) -> list[float]:
    return sorted({learning_rate(group) for groups in variants.values() for group in groups})


def _draw_curves(variants: dict[str, list[Group]], place: Path) -> None:
    from matplotlib import pyplot

    rates = _rates(variants)
    figure, axes = pyplot.subplots(
        len(rates), len(variants), figsize=(2.3 * len(variants) + 0.8, 2.0 * len(rates) + 0.9),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    highest = 0.0
    for column, (name, groups) in enumerate(variants.items()):
        axes[0][column].set_title(name, fontsize=10)
        axes[-1][column].set_xlabel("step", fontsize=9)
        for group in groups:
            axis = axes[rates.index(learning_rate(group))][column]
            curves = [curve for row in group.rows if (curve := loss_curve(row))]
            highest = max([highest, *(curve[0][1] for curve in curves)])
            _draw_panel(axis, group, curves)
    for line, rate in enumerate(rates):
        axes[line][0].set_ylabel(f"learning rate {rate:g}\nnats per token", fontsize=9)
    for axis in axes.flat:
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25, linewidth=0.5)
        axis.set_ylim(top=1.3 * highest if highest else None)
    figure.suptitle("Training loss: each seed thin, their mean thick, spikes as red ticks at the top", fontsize=11)
    _save(figure, place)


def _draw_panel(axis: Any, group: Group, curves: list[list[tuple[int, float]]]) -> None:
    for curve in curves:
        axis.plot(*zip(*curve, strict=True), color="tab:blue", linewidth=0.6, alpha=0.55)
    if mean := mean_curve(curves):
        axis.plot(*zip(*mean, strict=True), color="black", linewidth=1.4)
    spikes = [step for row in group.rows for step in spiked_steps(row)]
    for step in spikes:
        axis.axvline(step, ymin=0.9, color="tab:red", linewidth=0.9)
    unfinished = [row.status for row in group.rows if not row.finished]
    text = f"{len(spikes)} spike{'s' * (len(spikes) > 1)}" if spikes else "no spike" if curves else ""
    text += f"\n{len(unfinished)} not finished" if unfinished else ""
    axis.text(0.97, 0.86, text, transform=axis.transAxes, ha="right", va="top", fontsize=8)


def _draw_map(variants: dict[str, list[Group]], place: Path) -> None:
    from matplotlib import pyplot

    rates, names = _rates(variants), list(variants)
    at = {(name, learning_rate(group)): group for name, groups in variants.items() for group in groups}
    cells = {key: group.mean("bits_per_character") for key, group in at.items()}
    values = [[cells.get((name, rate)) for rate in rates] for name in names]
    numbers = [[math.nan if value is None else value for value in line] for line in values]
    figure, axis = pyplot.subplots(figsize=(2.3 * len(rates) + 3.4, 0.85 * len(names) + 1.7), layout="constrained")
    colormap = pyplot.get_cmap("viridis_r").with_extremes(bad="0.85")
    image = axis.imshow(numbers, cmap=colormap, aspect="auto")
    axis.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("learning rate")
    for (name, rate), group in at.items():
        _write_cell(axis, group, x=rates.index(rate), y=names.index(name), dark=_is_dark(image, cells[name, rate]))
    for line, (_, groups) in enumerate(variants.items()):
        stable = largest_stable_rate(groups)
        if stable is not None:
            frame = pyplot.Rectangle(
                (rates.index(stable) - 0.47, line - 0.45), 0.94, 0.9, fill=False, edgecolor="tab:red"
            )
            frame.set_linewidth(2.0)
            axis.add_patch(frame)
    figure.colorbar(image, ax=axis, label="held-out bits per character at the end")
    axis.set_title(
        "Where training ends: mean ± standard deviation over seeds; red frame: largest stable rate", fontsize=9
    )
    _save(figure, place)


def _is_dark(image: Any, value: float | None) -> bool:
    if value is None:
        return False
    red, green, blue, _ = image.cmap(image.norm(value))
    return 0.3 * red + 0.59 * green + 0.11 * blue < 0.5


def _write_cell(axis: Any, group: Group, *, x: int, y: int, dark: bool) -> None:
    mean, deviation, norms = (
        group.mean("bits_per_character"),
        group.deviation("bits_per_character"),
        group.values("largest_gradient_norm"),
    )
    lines, left = [], sum(not row.finished for row in group.rows)
    if left < len(group.rows):
        lines.append("not finite" if mean is None else f"{mean:.3f}" + (f" ± {deviation:.3f}" if deviation else ""))
        spikes = sum(group.values("spikes")) / (len(group.rows) - left)
        lines.append(f"{spikes:.1f} spikes per job" if spikes else "no spike")
    if norms:
        lines.append(f"gradient norm up to {max(norms):.3g}")
    if left:
        lines.append(f"{left} of {len(group.rows)} not finished")
    axis.text(x, y, "\n".join(lines), ha="center", va="center", fontsize=8.5, color="white" if dark else "black")


def _save(figure: Any, place: Path) -> None:
    from matplotlib import pyplot

    partial = place.with_name(f".{place.name}.partial")
    figure.savefig(partial, dpi=130, format="png")
    partial.replace(place)
    pyplot.close(figure)


def write_tensorboard_view(sweep: Sweep, page: str) -> None:
    """Write ``summary/``: the tables as text and one entry per finished job for the HPARAMS tab.

    The loss curves are in the jobs' own folders, which the sweep's folder shows as they are.
    """
    from torch.utils.tensorboard import SummaryWriter

    place = sweep.folder / "summary"
    shutil.rmtree(place, ignore_errors=True)
    with SummaryWriter(str(place)) as writer:
        writer.add_text("summary", page)
        for row in sweep.rows:
            figures = {f"final/{name}": value for name, value in row.figures.items() if value is not None}
            if row.finished and figures:
                settings = {axis: _number_or_text(row.settings.get(axis, "")) for axis in sweep.axes}
                writer.add_hparams(settings or {"job": row.number}, figures, run_name=f"job-{row.number}")


def _number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
