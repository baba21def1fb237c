"""Loss curves of runs, read from their TensorBoard event files, also while a run still writes them (R70, R82).

Takes every event file of a run, so a resumed run is one curve, without the steps that a later start did again. Costs
about a second per 100,000 figures. Does not: smooth, or invent what was not logged: a loss that was not finite is left
out, and counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

Kind = Literal["pretraining", "tuning"]
Point = tuple[int, float]

_LOSS, _HELD_OUT, _TOKENS = "train/loss", "held_out/nats_per_token", "train/tokens_seen"
_EVENTS = "events.out.tfevents.*"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A run's losses in nats per token by optimizer step, and the tokens seen by step; ``not_finite`` were left out."""

    name: str
    folder: Path
    kind: Kind
    losses: tuple[Point, ...]
    held_out: tuple[Point, ...] = ()
    tokens: tuple[Point, ...] = ()
    not_finite: int = 0

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens per step where that is one number for the whole run (within 1%); else None."""
        ratios = [tokens / step for step, tokens in self.tokens if step > 0]
        if not ratios or max(ratios) > 1.01 * min(ratios):
            return None
        return ratios[-1]


def find_runs(names: Sequence[str], *, home: Path) -> list[Path]:
    """The folders of the runs that are named: each a folder, a name under ``<home>/runs`` (its newest), all, or last.

    ``last`` is the newest pretraining run and the newest tuning run, and may be nothing. ``FileNotFoundError`` for a
    named run that has no event files.
    """
    runs = Path(home).expanduser() / "runs"
    found: list[Path] = []
    for name in names:
        if name in ("all", "last"):
            every = _runs_below(runs)
            newest = {kind_of(folder): folder for folder in every}
            found += every if name == "all" else [newest[kind] for kind in sorted(newest)]
            continue
        given = Path(name).expanduser()
        below = _runs_below(given) or ([] if given.is_absolute() else _runs_below(runs / name))
        if not below:
            raise FileNotFoundError(
                f"runs={name}: no TensorBoard event files there, nor under {runs / name}. Name the folder of a run "
                f"(.ncvc/runs/<name>/<time>), all, last, or none."
            )
        found.append(below[-1])
    return list(dict.fromkeys(folder.absolute() for folder in found))


def _runs_below(folder: Path) -> list[Path]:
    """The run folders at or below ``folder``, the one that was written last at the end."""
    written: dict[Path, float] = {}
    for path in folder.rglob(_EVENTS) if folder.is_dir() else ():
        relative = path.relative_to(folder).parts
        if "summary" in relative[:-1]:
            continue  # a sweep's view, not a run
        run = path.parent.parent if path.parent.name == "tensorboard" else path.parent
        written[run] = max(written.get(run, 0.0), path.stat().st_mtime)
    return sorted(written, key=lambda run: (written[run], str(run)))


def kind_of(folder: Path) -> Kind:
    """Whether a run tuned on conversations, by its ``config.yaml``; pretraining where it has none."""
    try:
        config = yaml.safe_load((Path(folder) / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return "pretraining"
    data = config.get("data") if isinstance(config, dict) else None
    target = str(data.get("_target_", "")) if isinstance(data, dict) else ""
    return "tuning" if target.startswith("data_modules.chat") else "pretraining"


def read_curve(folder: Path, *, name: str | None = None) -> Curve:
    """The curves of the run in ``folder``. ``ValueError`` when its event files hold no training loss."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(folder)
    place = folder / "tensorboard" if (folder / "tensorboard").is_dir() else folder
    logger = logging.getLogger("tensorboard")
    level = logger.level
    logger.setLevel(logging.ERROR)  # a file whose end is still being written is no news
    try:
        events = EventAccumulator(str(place), size_guidance={"scalars": 0})
        events.Reload()
        known = set(events.Tags()["scalars"])
        scalars = {tag: _points(events.Scalars(tag)) for tag in (_LOSS, _HELD_OUT, _TOKENS) if tag in known}
    finally:
        logger.setLevel(level)
    losses = scalars.get(_LOSS, [])
    finite = _finite(losses)
    if not finite:
        why = f"{len(losses)} figures, none of them finite" if losses else f"no {_LOSS} in it"
        raise ValueError(f"{place} holds no curve of a training loss: {why}. Name the folder of another run in runs.")
    return Curve(
        name=name or run_name(folder),
        folder=folder,
        kind=kind_of(folder),
        losses=finite,
        held_out=_finite(scalars.get(_HELD_OUT, [])),
        tokens=_finite(scalars.get(_TOKENS, [])),
        not_finite=len(losses) - len(finite),
    )


def run_name(folder: Path) -> str:
    """A run's folder as a label: its name and its time."""
    return "/".join(Path(folder).absolute().parts[-2:])


def _points(events: Iterable[Any]) -> list[Point]:
    """(step, value) by step; of a step that was logged twice, what was logged last."""
    latest = {int(event.step): float(event.value) for event in events}
    return sorted(latest.items())


def _finite(points: Sequence[Point]) -> tuple[Point, ...]:
    return tuple((step, value) for step, value in points if math.isfinite(value))
