"""Score files and runs as ``ncvc.evaluate`` and ``ncvc.train`` leave them, for the tests of the report."""

import json
import math

import pytest

from ncvc.analysis.own_scores import find_scores, read_own_scores

VERDICT = "not told apart from chance (0.00)"
YEARS = (2018, 2019, 2020, 2021, 2022)
TOTALS = dict(zip(YEARS, (499, 496, 496, 500, 494), strict=True))


def choice_record(task="crade", *, kappa=0.31, accuracy=0.44, items=100, answered=None, **more):
    """A choice task as ``ncvc.evaluate`` records it."""
    rival = {"kappa": 0.71, "accuracy": 0.75}
    record = {
        "task": task, "family": "jmed_llm", "metric": "kappa", "items": items,
        "answered": items if answered is None else answered, "refused": 7, "failed": 0, "missing": 0,
        "as_published": {"kappa": kappa, "accuracy": accuracy},
        "corrected": {"kappa": kappa - 0.01, "accuracy": accuracy},
        "interval": {"corrected": {"kappa": [kappa - 0.2, kappa + 0.2]}},
        "chance": {"kappa": 0.0, "accuracy": 0.25},
        "majority": {"name": "majority", "as_published": {"kappa": 0.0, "accuracy": 0.2}, "corrected": {"kappa": 0.0}},
        "baselines": {"character n-grams": {"as_published": rival, "corrected": rival}},
        "leak": {"status": "some", "share": 0.94}, "verdict": VERDICT,
    }  # fmt: skip
    return {**record, **more}


def span_record(task="nrner", **more):
    figures = {"partial_f1": 1.3, "exact_f1": 0.7}
    corrected = {"overlap_f1": 0.66, "exact_f1": 0.61}
    return choice_record(
        task, metric="overlap_f1", as_published=figures, corrected=corrected, chance={"overlap_f1": 0.01},
        interval={"corrected": {"overlap_f1": [0.6, 0.7]}}, majority={}, baselines={}, **more,
    )  # fmt: skip


def exam_record(year, *, points, block="", half=4.0, total=None, **more):
    total = TOTALS[year] if total is None else total
    figures = {"points": points, "total": total, "percent": 100 * points / total}
    return choice_record(
        f"igakuqa_{year}{block}", family="igakuqa", metric="percent", items=400, as_published=figures,
        corrected=figures, chance={"percent": 18.8, "points": 93.6}, majority={}, baselines={},
        interval={"corrected": {"percent": [figures["percent"] - half, figures["percent"] + half]}}, **more,
    )  # fmt: skip


def score_file(home, *records, name="tiny", where=None, tokens=None, directory=None, **more):
    """Write ``scores.json`` under home; returns its folder."""
    model = {"name": name, "training": {} if tokens is None else {"tokens_seen": tokens}, "directory": directory}
    content = {
        "format": 1, "model": model, "split": "paper", "fold": None, "shots": 0, "method": "generation",
        "tasks": list(records), "created": "2026-11-24T00:00:00+00:00", "command": "python -m ncvc.evaluate", **more,
    }  # fmt: skip
    folder = home / "scores" / (where or name)
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def event_file(folder, scalars):
    """Write {tag: [(step, value), ...]} as a run's TensorBoard events."""
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))
    with writer:
        for tag, points in scalars.items():
            for step, value in points:
                writer.add_scalar(tag, value, step)
    return folder


def training_run(folder, *, tuning=False, steps=60, per_step=2048):
    folder.mkdir(parents=True)
    target = "data_modules.chat.ChatDataModule" if tuning else "data_modules.packed.PackedDataModule"
    (folder / "config.yaml").write_text(f"data:\n  _target_: {target}\n")
    marks = range(10, steps + 1, 10)
    losses = [(step, 4.0 + 4.0 * math.exp(-step / 20)) for step in marks]
    return event_file(
        folder,
        {"train/loss": losses, "train/tokens_seen": [(step, step * per_step) for step in marks],
         "held_out/nats_per_token": [(30, 5.1), (60, 4.5)]},
    )  # fmt: skip


def own(home):
    return read_own_scores(find_scores(["all"], home=home))


def row_of(table, start):
    return next(row for row in table.rows if row.label.startswith(start))
