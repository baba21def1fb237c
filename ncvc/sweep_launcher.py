"""Sweeps: every job of ``--multirun`` is a program of its own, supervised, in a folder of the sweep's folder.

``IsolatedLauncher`` (Hydra's name for it: ``isolated``) runs ``hydra.launcher.n_jobs`` jobs at once on this machine;
under other launchers (submitit on a cluster, joblib) the process that Hydra starts for a job only starts and watches
that program (``run_as_own_program``). Lightning starts further ranks by repeating the command line, and under a sweep
that line is the whole sweep: hence a fresh interpreter with exactly one job's overrides. All jobs are tried, whatever
becomes of the others; finished ones are not run again. Costs one start of Python (a few seconds) per job.
"""

from __future__ import annotations

import os
import queue
import re
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from ncvc.analysis.sweeps import final_bits_per_character, summarize_sweep
from ncvc.supervision import JobOutcome, StopRequest, clean_environment, held, run_job, stop_on_signals
from ncvc.sweep_folder import SweepJob, kept_outcome, names_of_jobs, refuse_another, take_up_sweep

PROGRAM = (sys.executable, "-m", "ncvc.train")
_PLUGIN = "hydra_plugins.ncvc_isolated"  # Hydra takes launchers only from this namespace


class SweepError(CompactHydraException):
    """Something about a sweep that Hydra is to print as one message, without a trace."""


@dataclass(frozen=True, kw_only=True)
class _Composed(SweepJob):
    """A job with its composed configuration and what it runs on."""

    config: DictConfig
    devices: int
    on_gpu: bool


@dataclass
class IsolatedLauncherConfig:
    """Settings of ``hydra.launcher``: how many jobs run at once."""

    _target_: str = f"{_PLUGIN}.IsolatedLauncher"
    n_jobs: int = 1


def register_launcher() -> None:
    """Make ``hydra/launcher=isolated`` known to Hydra; safe to call more than once."""
    ConfigStore.instance().store(group="hydra/launcher", name="isolated", node=IsolatedLauncherConfig, provider="ncvc")
    home = IsolatedLauncher.__module__
    IsolatedLauncher.__module__ = _PLUGIN  # Hydra knows plugins by module and name; afterwards it is found at home
    try:
        Plugins.instance().register(IsolatedLauncher)
    finally:
        IsolatedLauncher.__module__ = home


class IsolatedLauncher(Launcher):
    """Runs each job as ``python -m ncvc.train <its overrides>`` in a session and environment of its own."""

    def __init__(self, *, n_jobs: int = 1) -> None:
        if n_jobs < 1:
            raise SweepError(
                f"hydra.launcher.n_jobs={n_jobs}: at least one job must run at a time; set it to 1 or more."
            )
        self.n_jobs = n_jobs
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        if OmegaConf.select(config, "hydra.sweeper.max_batch_size") is not None:
            raise SweepError(
                "hydra.sweeper.max_batch_size is set: Hydra ends a sweep after a batch with a failed job. Set it to "
                "null; how many jobs run at once is hydra.launcher.n_jobs."
            )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs, print one line as each ends and a summary; finished jobs of an earlier start are kept."""
        assert self.config is not None
        setup_globals()
        sweep = Path(str(self.config.hydra.sweep.dir)).absolute()
        try:
            with held(sweep, lock=".lock", what="a sweep"):
                jobs = self._jobs(job_overrides, first=initial_job_idx, sweep=sweep)
                take_up_sweep(sweep, jobs, whole=initial_job_idx == 0)
                stop = StopRequest()
                with stop_on_signals(stop) as signals:
                    outcomes = self._run(jobs, stop)
                print(summarize_sweep(sweep), flush=True)
        except (ValueError, OSError) as error:
            raise SweepError(f"error: {error}") from error
        if any(outcome.status != "finished" for outcome in outcomes):
            plain = not set(str(sweep)) & set(" ,'=")
            again = shlex.quote(f"hydra.sweep.dir={sweep if plain else quoted(sweep)}")
            print(f"to go on     repeat this command with {again}: finished jobs are kept", flush=True)
        if signals:
            raise SystemExit(128 + signals[0])
        return [_job_return(job, outcome) for job, outcome in zip(jobs, outcomes, strict=True)]

    def _jobs(self, job_overrides: Sequence[Sequence[str]], *, first: int, sweep: Path) -> list[_Composed]:
        assert self.config is not None
        lists = [_own_overrides(overrides) for overrides in job_overrides]
        names = names_of_jobs(lists)
        before = HydraConfig.instance().cfg
        jobs = []
        for place, overrides in enumerate(lists):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
            with open_dict(config):
                config.hydra.job.num, config.hydra.job.id = first + place, str(first + place)
            HydraConfig.instance().set_config(config)
            devices = OmegaConf.select(config, "trainer.devices")
            accelerator = OmegaConf.select(config, "trainer.accelerator")
            jobs.append(
                _Composed(
                    number=first + place,
                    overrides=overrides,
                    name=names[place],
                    folder=sweep / str(config.hydra.sweep.subdir),
                    config=config,
                    devices=devices if isinstance(devices, int) and devices > 0 else 1,
                    on_gpu=accelerator in ("gpu", "cuda"),
                )
            )
            _environment(jobs[-1], slot=self.n_jobs - 1, n_jobs=self.n_jobs)  # raises where there are too few GPUs
        HydraConfig.instance().cfg = before
        return jobs

    def _run(self, jobs: list[_Composed], stop: StopRequest) -> list[JobOutcome]:
        """Outcomes in the order of ``jobs``; those that were not started because of ``stop`` say so."""
        assert self.config is not None
        slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.n_jobs):
            slots.put(slot)
        progress, flags = _Progress(len(jobs), n_jobs=self.n_jobs), _flags(self.config.hydra)

        def run(job: _Composed) -> JobOutcome:
            if (kept := kept_outcome(job)) is not None:
                progress.tell(job, kept, kept=True)
                return kept
            if stop.is_set():
                return JobOutcome(status="not started", return_code=None, seconds=0.0, reason="the sweep was ended")
            slot = slots.get()
            try:
                environment = _environment(job, slot=slot, n_jobs=self.n_jobs)
                outcome = _run_program(job, environment=environment, flags=flags, stop=stop)
            finally:
                slots.put(slot)
            progress.tell(job, outcome)
            return outcome

        with ThreadPoolExecutor(max_workers=self.n_jobs) as pool:
            futures = [pool.submit(run, job) for job in jobs]
            while not all(future.done() for future in futures):
                time.sleep(0.1)  # in the main thread, where signals arrive
            return [future.result() for future in futures]


def run_as_own_program(hydra: Any) -> float | None:
    """Run the job that another launcher started in this process as a program of its own, and wait for it.

    ``hydra`` is the job's Hydra configuration. Returns held-out bits per character, for sweepers that search. Raises
    ``SweepError`` with the reason when the job does not finish, and when its folder holds another job.
    """
    folder = Path(str(hydra.runtime.output_dir)).absolute()
    overrides = _own_overrides(list(hydra.overrides.task))
    job = SweepJob(
        number=int(hydra.job.num), overrides=overrides, name=f"{folder.name} of {folder.parent}", folder=folder
    )
    try:
        refuse_another(job)
        outcome = kept_outcome(job)
        if outcome is None:
            stop = StopRequest()
            with stop_on_signals(stop) as signals:
                outcome = _run_program(job, environment=clean_environment(os.environ), flags=_flags(hydra), stop=stop)
            if signals:
                raise SystemExit(128 + signals[0])
    except (ValueError, OSError) as error:
        raise SweepError(f"error: {error}") from error
    if outcome.status != "finished":
        raise _failure(job, outcome)
    return final_bits_per_character(folder)


class SweepSummary(Callback):
    """Writes and prints the summary of a sweep under any launcher; ``isolated`` has done so by itself."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra when every job of the sweep has succeeded."""
        if str(config.hydra.launcher._target_) != IsolatedLauncherConfig._target_:
            print(summarize_sweep(Path(str(config.hydra.sweep.dir)).absolute()), flush=True)


def _own_overrides(overrides: Sequence[Any]) -> list[str]:
    """A job's overrides without Hydra's own and without ``resume``: where and how it starts is the sweep's business."""
    left_out = ("hydra.", "+hydra.", "++hydra.", "hydra/", "~hydra", "resume=")
    return [str(text) for text in overrides if not str(text).startswith(left_out)]


def _run_program(job: SweepJob, *, environment: dict[str, str], flags: Sequence[str], stop: StopRequest) -> JobOutcome:
    where = f"hydra.run.dir={quoted(job.folder)}"
    command = [*PROGRAM, *flags, *job.overrides, "resume=auto", where]
    try:
        return run_job(
            command,
            folder=job.folder,
            environment=environment,
            overrides=job.overrides,
            product="result.json",
            stop=stop,
        )
    except (ValueError, OSError) as error:
        return JobOutcome(status="failed", return_code=None, seconds=0.0, reason=str(error))


def quoted(path: Path) -> str:
    """A path as one value of Hydra's override grammar, in which a backslash escapes only before a quote."""
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + found[2].replace("'", "\\'"), str(path))
    return f"'{escaped}'"


def _flags(hydra: DictConfig) -> list[str]:
    """The options of the sweep's own command line that decide which configuration a job composes."""
    flags = []
    if hydra.job.config_name not in (None, "train"):
        flags += ["--config-name", str(hydra.job.config_name)]
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            flags += ["--config-dir", str(source.path)]
    return flags


def _environment(job: _Composed, *, slot: int, n_jobs: int) -> dict[str, str]:
    """The job's environment: its share of the cores and, with several jobs at once, of the GPUs."""
    environment = clean_environment(os.environ)
    if n_jobs > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // (n_jobs * job.devices))))
        if job.on_gpu:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(
                share_of_devices(_visible_gpus(), slot=slot, n_jobs=n_jobs, wanted=job.devices)
            )
    return environment


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def share_of_devices(available: Sequence[str], *, slot: int, n_jobs: int, wanted: int) -> list[str]:
    """The devices of a slot when ``n_jobs`` jobs of ``wanted`` devices each run at once; no two slots share one.

    Raises ``ValueError`` when there are too few.
    """
    if n_jobs * wanted > len(available):
        raise ValueError(
            f"hydra.launcher.n_jobs={n_jobs} x trainer.devices={wanted} GPUs, but {len(available)} are visible; set "
            f"hydra.launcher.n_jobs={max(1, len(available) // wanted)}."
        )
    return list(available[slot * wanted : (slot + 1) * wanted])


def _failure(job: SweepJob, outcome: JobOutcome) -> SweepError:
    return SweepError(
        f"job {job.number} ({job.name}) {outcome.status}: {outcome.reason}\n(its output is in {job.folder}/output.txt; "
        f"the whole sweep: python -m ncvc.report sweep={job.folder.parent})"
    )


def _job_return(job: _Composed, outcome: JobOutcome) -> JobReturn:
    """What Hydra's sweepers take: held-out bits per character, or the failure as an exception."""
    finished = outcome.status == "finished"
    hydra_config, task_config = OmegaConf.masked_copy(job.config, ["hydra"]), job.config.copy()
    with open_dict(task_config):
        del task_config["hydra"]
    return JobReturn(
        overrides=job.overrides,
        cfg=task_config,
        hydra_cfg=hydra_config,
        working_dir=str(Path.cwd()),
        task_name="train",
        status=JobStatus.COMPLETED if finished else JobStatus.FAILED,
        _return_value=final_bits_per_character(job.folder) if finished else _failure(job, outcome),
    )


class _Progress:
    """One line as each job ends, with an estimate of the rest from the jobs that ran."""

    def __init__(self, num_jobs: int, *, n_jobs: int) -> None:
        self.num_jobs, self.n_jobs = num_jobs, n_jobs
        self.ended = 0
        self.seconds: list[float] = []
        self.lock = threading.Lock()

    def tell(self, job: SweepJob, outcome: JobOutcome, *, kept: bool = False) -> None:
        """Print the line of a job that has ended, or was kept from an earlier start."""
        with self.lock:
            self.ended += 1
            if not kept:
                self.seconds.append(outcome.seconds)
            text = f"[{self.ended}/{self.num_jobs}] {job.name}: "
            if outcome.status == "finished":
                bits = final_bits_per_character(job.folder)
                text += "finished before" if kept else f"finished in {_duration(outcome.seconds)}"
                text += "" if bits is None else f", {bits:.3f} bits per character"
            else:
                first, *last_words = outcome.reason.splitlines() or [""]
                errors = [line for line in last_words if line.startswith("error:")] or last_words[-1:]
                text += f"{outcome.status} after {_duration(outcome.seconds)}: {', '.join([first, *errors[:1]])}"
            left = self.num_jobs - self.ended
            if left and self.seconds:
                rest = sum(self.seconds) / len(self.seconds) * -(-left // self.n_jobs)
                text += f"; about {_duration(rest)} left"
            print(text, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
