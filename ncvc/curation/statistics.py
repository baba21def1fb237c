"""Documents, bytes and seconds of every step of a curation, from the statistics that datatrove wrote for its tasks.

They lie beside the finished corpus, not in it: times differ from run to run, and the corpus' bytes must not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ncvc.storage import write_json


def statistics_file(corpus: Path) -> Path:
    """Where the statistics of the finished folder ``corpus`` lie."""
    return corpus.with_name(f"{corpus.name}.statistics.json")


def write_statistics(corpus: Path, *, tasks: Mapping[str, int], folder: Path) -> None:
    """Sum the statistics of the finished stages ``tasks`` (name -> number of tasks) under ``folder``."""
    write_json(statistics_file(corpus), {name: _summed(folder / name, count) for name, count in tasks.items()})


def _summed(stage: Path, tasks: int) -> list[dict[str, Any]]:
    totals: list[dict[str, Any]] = []
    for rank in range(tasks):
        steps = json.loads((stage / "stats" / f"{rank:05d}.json").read_text(encoding="utf-8"))
        totals = totals or [{"name": step["name"].split(": ", 1)[-1], "seconds": 0.0} for step in steps]
        for total, step in zip(totals, steps, strict=True):
            total["seconds"] += step["time_stats"].get("total", 0.0) if step["time_stats"] else 0.0
            for key, value in step["stats"].items():
                total[key] = total.get(key, 0) + (value["total"] if isinstance(value, dict) else value)
    return totals


def statistics_table(corpus: Path) -> str:
    """The statistics as lines to print; seconds are summed over the workers, MB/s are of one of them."""
    stages = json.loads(statistics_file(corpus).read_text(encoding="utf-8"))
    lines = [f"{'stage':<8} {'step':<20} {'documents':>12} {'dropped':>10} {'MB':>10} {'seconds':>9} {'MB/s':>8}"]
    for stage, steps in stages.items():
        for step in steps:
            if "documents" not in step:
                continue
            megabytes, seconds = step["bytes"] / 1e6, step["seconds"]
            speed = f"{megabytes / seconds:,.1f}" if seconds > 0.001 else ""
            lines.append(
                f"{stage:<8} {step['name']:<20} {step['documents']:>12,} {step['documents'] - step['kept']:>10,} "
                f"{megabytes:>10,.1f} {seconds:>9,.1f} {speed:>8}"
            )
    return "\n".join(lines)
