"""What a sweep's folder holds, as far as going on with it needs to know: the plan of its jobs and how each one ended.

``sweep.json`` is the plan (number -> overrides), ``<job>/job.json`` the record that supervision keeps. A folder is gone
on with only by the same sweep. Knows files, nothing of Hydra.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ncvc.resuming import is_finished
from ncvc.storage import write_json
from ncvc.supervision import JobOutcome, read_job


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """One job: its number, its overrides as Hydra quotes them, what distinguishes it, its folder."""

    number: int
    overrides: list[str]
    name: str
    folder: Path


def write_plan(folder: Path, jobs: Mapping[int, Sequence[str]]) -> None:
    """Record which jobs (number -> overrides) the sweep in ``folder`` consists of, in ``sweep.json``."""
    write_json(folder / "sweep.json", {"jobs": {str(number): list(overrides) for number, overrides in jobs.items()}})


def read_plan(folder: Path) -> dict[int, list[str]]:
    """The jobs recorded by ``write_plan``; empty where none were. ``ValueError`` for a file that is not one."""
    path = folder / "sweep.json"
    if not path.is_file():
        return {}
    try:
        return {int(key): list(value) for key, value in json.loads(path.read_text(encoding="utf-8"))["jobs"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the plan of a sweep ({error}); set another folder") from error


def differing_overrides(there: Sequence[str], here: Sequence[str]) -> str:
    """In words, how the overrides of a job on disk differ from those asked for."""
    only_there = [text for text in there if text not in here]
    only_here = [text for text in here if text not in there]
    if not only_there and not only_here:
        return "the same settings in another order"
    return f"it has {' '.join(only_there) or 'nothing else'}, this one has {' '.join(only_here) or 'nothing else'}"


def names_of_jobs(lists: Sequence[list[str]]) -> list[str]:
    """What distinguishes each job: the overrides that not all of them share."""
    shared = set.intersection(*(set(overrides) for overrides in lists)) if len(lists) > 1 else set()
    return [" ".join(text for text in overrides if text not in shared) or "(as it is)" for overrides in lists]


def take_up_sweep(sweep: Path, jobs: Sequence[SweepJob], *, whole: bool) -> None:
    """Refuse a folder that holds another sweep, by name; then record this one's jobs in ``sweep.json``.

    ``whole``: these are all jobs from the first on, so that further ones in the folder belong to another sweep.
    """
    planned, asked = read_plan(sweep), {job.number: job.overrides for job in jobs}
    for job in jobs:
        if job.number in planned and planned[job.number] != job.overrides:
            raise ValueError(_another(job, planned[job.number]))
        refuse_another(job)
    if whole and planned and set(planned) != set(asked):
        names = dict(zip(planned, names_of_jobs(list(planned.values())), strict=True)) | {
            job.number: job.name for job in jobs
        }
        number = min(set(planned) ^ set(asked))
        raise ValueError(
            f"hydra.sweep.dir={sweep} holds a sweep of {len(planned)} jobs, this one has {len(asked)}: job {number} "
            f"({names[number]}) is in only one of them. Repeat that sweep's command, or set another folder."
        )
    write_plan(sweep, {**planned, **asked})


def refuse_another(job: SweepJob) -> None:
    """``ValueError`` when the job's folder holds another job, or a run that is none."""
    there = read_job(job.folder)
    if there is not None and there.get("overrides") != job.overrides:
        raise ValueError(_another(job, [str(text) for text in there.get("overrides", [])]))
    if there is None and (job.folder / "result.json").exists():
        raise ValueError(f"{job.folder} holds a run that is no job of a sweep; set another hydra.sweep.dir.")


def _another(job: SweepJob, there: list[str]) -> str:
    return (
        f"{job.folder} holds another job: {differing_overrides(there, job.overrides)}. Repeat that sweep's command, or "
        "set another hydra.sweep.dir."
    )


def kept_outcome(job: SweepJob) -> JobOutcome | None:
    """The outcome of a job that has finished at an earlier start of the sweep, else None."""
    record = read_job(job.folder)
    if record is None or record.get("status") != "finished" or not is_finished(job.folder):
        return None
    return JobOutcome(status="finished", return_code=0, seconds=float(record.get("seconds", 0.0)), reason="")
