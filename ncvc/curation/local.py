"""datatrove's executor for tasks of this machine, one rank at a time; `ncvc.curation.executors` shares the ranks out.

Imports datatrove when it is imported; import it inside functions only.
"""

from __future__ import annotations

from typing import Any

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.utils.stats import PipelineStats


class LocalExecutor(PipelineExecutor):
    """``run_rank`` runs one rank with datatrove's marks, statistics and log file; nothing but errors on the screen."""

    def __init__(self, pipeline: list[Any], *, tasks: int, logging_dir: str) -> None:
        super().__init__(pipeline, logging_dir, skip_completed=True)
        self.tasks = tasks

    def run(self) -> None:
        """Run every rank that has no mark yet, one after the other."""
        for rank in self.get_incomplete_ranks():
            self.run_rank(rank)

    def run_rank(self, rank: int) -> None:
        """Run one rank; a fresh process or a copy of this object for each, because steps count as they run."""
        self._run_for_rank(rank)

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        return super()._run_for_rank(rank, 1, node_rank)  # datatrove shows the log of local rank 0 on the screen

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        """No node but this one."""
        return DistributedEnvVars(
            datatrove_node_ips="localhost",
            datatrove_cpus_per_task="-1",
            datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="-1",
            datatrove_executor="LOCAL",
        )

    @property
    def world_size(self) -> int:
        """The number of tasks."""
        return self.tasks
