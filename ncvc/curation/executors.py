"""Stages of tasks on datatrove's executors (local processes, Ray, Slurm), with progress, resumable at every task.

A task is one rank of a datatrove pipeline. datatrove marks a rank complete after its last step, and a stage that is run
again leaves out the ranks with a mark: so a killed curation costs the tasks under way. Local tasks run on a pool that
notices a worker that died (datatrove's own waits for it for ever, measured) and whose workers end with this process.

Costs: worker processes start once for all stages, in about two seconds; a single worker is this process.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ncvc.curation.settings import ExecutorSettings
from ncvc.processes import exit_with_parent, without_main_module

_POLL_SECONDS = 0.5
_PRELOADED = [f"ncvc.curation.{name}" for name in ("local", "steps", "reading_steps", "writing_steps")]


@dataclass(frozen=True)
class Stage:
    """``steps`` of datatrove, run for ranks 0 to ``tasks`` - 1; ``sizes`` are the bytes of each task, for the ETA.

    ``short`` tasks take seconds: they run on this machine, because a cluster takes longer to start them.
    """

    name: str
    steps: Sequence[Any]
    tasks: int
    sizes: Sequence[int] = field(default=())
    short: bool = False


class StageFailed(ValueError):
    """A task raised or its worker died; the message names the task and where its log is."""


class Workers:
    """The worker processes of this machine, started at the first need and kept for every stage."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *others: object) -> None:
        if self._pool is None:
            return
        if kind is KeyboardInterrupt:  # a task may take a minute more, and what it has not finished is done again
            for process in list((self._pool._processes or {}).values()):
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, run_rank: Callable[[int], None], rank: int) -> Future[None]:
        """Have ``run_rank(rank)`` run in one of them."""
        with without_main_module():
            return self.pool.submit(run_rank, rank)

    @property
    def pool(self) -> ProcessPoolExecutor:
        """The pool; its workers are forked from a server that has imported what they need."""
        if self._pool is None:
            method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
            context = multiprocessing.get_context(method)
            if method == "forkserver":
                context.set_forkserver_preload(_PRELOADED)
            self._pool = ProcessPoolExecutor(max_workers=self.number, mp_context=context, initializer=exit_with_parent)
        return self._pool


def run_stage(stage: Stage, *, executor: ExecutorSettings, workers: Workers, folder: Path, progress: bool) -> None:
    """Run what is missing of ``stage``; marks, statistics and logs lie under ``folder``/<name>.

    ``workers`` are those of this machine.

    Raises `StageFailed`; finished tasks stay finished.
    """
    logging_dir = folder / stage.name
    os.environ.setdefault("LOGURU_LEVEL", "ERROR")  # read when loguru is imported, here and in the workers
    if stage.tasks == 0:
        return
    with _shown(stage, logging_dir, progress=progress):
        if executor.kind == "local" or stage.short:
            _run_locally(stage, logging_dir, workers=workers)
        elif executor.kind == "ray":
            _run_on_ray(stage, logging_dir, executor)
        else:
            _run_on_slurm(stage, logging_dir, executor)
    missing = _missing(stage, logging_dir)
    if missing:
        raise StageFailed(_failure(stage, logging_dir, missing[0], f"{len(missing)} of {stage.tasks} tasks failed"))


def _completed(logging_dir: Path) -> set[int]:
    with contextlib.suppress(FileNotFoundError):
        return {int(path.name) for path in (logging_dir / "completions").iterdir() if path.name.isdigit()}
    return set()


def _missing(stage: Stage, logging_dir: Path) -> list[int]:
    done = _completed(logging_dir)
    return [rank for rank in range(stage.tasks) if rank not in done]


def _failure(stage: Stage, logging_dir: Path, rank: int, reason: str) -> str:
    return (
        f"curation stopped in stage {stage.name}, task {rank}: {reason} (its log: "
        f"{logging_dir / 'logs' / f'task_{rank:05d}.log'}). What was finished stays; the same command goes on."
    )


# --- local processes
def _local_executor(stage: Stage, logging_dir: Path) -> Any:
    from ncvc.curation.local import LocalExecutor

    return LocalExecutor(list(stage.steps), tasks=stage.tasks, logging_dir=str(logging_dir))


def _run_locally(stage: Stage, logging_dir: Path, *, workers: Workers) -> None:
    missing = _missing(stage, logging_dir)
    if not missing:
        return
    runner = _local_executor(stage, logging_dir)
    if min(workers.number, len(missing)) == 1:
        for rank in missing:
            try:
                deepcopy(runner).run_rank(rank)
            except (OSError, ValueError) as error:
                raise StageFailed(_failure(stage, logging_dir, rank, str(error))) from error
        return
    # the largest first: the last to finish is then a small one
    order = sorted(missing, key=lambda rank: -stage.sizes[rank] if stage.sizes else 0)
    ranks: dict[Future[None], int] = {}
    try:
        ranks = {workers.submit(runner.run_rank, rank): rank for rank in order}
        for future in as_completed(ranks):
            try:
                future.result()
            except (OSError, ValueError) as error:
                raise StageFailed(_failure(stage, logging_dir, ranks[future], str(error))) from error
    except BrokenProcessPool as error:
        rank = _missing(stage, logging_dir)[0]
        words = f"a worker process died (killed for memory?); executor.workers={workers.number} may be too many"
        raise StageFailed(_failure(stage, logging_dir, rank, words)) from error
    finally:
        for future in ranks:
            future.cancel()


# --- Ray and Slurm
def _run_on_ray(stage: Stage, logging_dir: Path, executor: ExecutorSettings) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves this network
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "executor=ray needs the package ray, which is not installed; run: pip install 'ncvc[ray]'", name="ray"
        ) from error
    from datatrove.executor.ray import RayPipelineExecutor

    if not ray.is_initialized():
        local: dict[str, Any] = {"num_cpus": executor.num_workers * executor.cpus_per_task, "include_dashboard": False}
        ray.init(
            address=executor.address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if executor.address else local),
        )
    RayPipelineExecutor(
        list(stage.steps),
        tasks=stage.tasks,
        workers=executor.num_workers,
        cpus_per_task=executor.cpus_per_task,
        mem_per_cpu_gb=executor.gigabytes_per_cpu,
        logging_dir=str(logging_dir),
    ).run()


def _run_on_slurm(stage: Stage, logging_dir: Path, executor: ExecutorSettings) -> None:
    from datatrove.executor.slurm import SlurmPipelineExecutor

    if not _missing(stage, logging_dir):
        return
    job = SlurmPipelineExecutor(
        list(stage.steps),
        tasks=stage.tasks,
        time=str(executor.time),
        partition=str(executor.partition),
        cpus_per_task=executor.cpus_per_task,
        mem_per_cpu_gb=int(-(-executor.gigabytes_per_cpu // 1)),
        workers=executor.num_workers if executor.workers else -1,
        job_name=f"ncvc-{stage.name}",
        qos=executor.qos,
        env_command=executor.env_command,
        sbatch_args=dict(executor.sbatch_args or {}),
        logging_dir=str(logging_dir.absolute()),
        mail_type="NONE",
        with_srun=executor.srun,
    )
    job.run()
    while _missing(stage, logging_dir):
        if not _is_queued(str(job.job_id)):
            time.sleep(5)  # marks may lag behind on a shared disk
            return
        time.sleep(_POLL_SECONDS * 4)


def _is_queued(job: str) -> bool:
    import subprocess

    found = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=False)
    return found.returncode == 0 and bool(found.stdout.strip())


# --- progress
@contextlib.contextmanager
def _shown(stage: Stage, logging_dir: Path, *, progress: bool) -> Iterator[None]:
    """A bar over the bytes of the stage's tasks, fed by their marks and by what running tasks write down."""
    sizes = list(stage.sizes) or [1] * stage.tasks
    stop = threading.Event()
    bar = tqdm(
        total=sum(sizes),
        desc=stage.name,
        unit="B" if stage.sizes else " tasks",
        unit_scale=True,
        disable=not progress,
        dynamic_ncols=True,
    )

    def follow() -> None:
        while True:
            stopped = stop.wait(_POLL_SECONDS)
            done = _completed(logging_dir)
            read = sum(sizes[rank] for rank in done if rank < len(sizes))
            documents = 0
            with contextlib.suppress(FileNotFoundError):
                for path in (logging_dir / "progress").iterdir():
                    with contextlib.suppress(OSError, ValueError):
                        counted, position = map(int, path.read_text().split())
                        documents += counted
                        if int(path.name) not in done:
                            read += min(position, sizes[int(path.name)])
            if documents:
                bar.set_postfix_str(f"{documents:,} documents", refresh=False)
            bar.update(max(0, read - bar.n))
            if stopped:
                return

    with bar:
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
