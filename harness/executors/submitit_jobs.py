"""Workers as SLURM jobs, or as processes in place of them (``executor=submitit``)."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from harness.executors.executor import Address, Executor, check_count


@dataclass(frozen=True, kw_only=True)
class Submitit(Executor):
    """One SLURM job for each worker. The first that starts begins; the others join when SLURM lets them.

    A worker whose job reaches its time limit counts as lost: it is submitted again, and what it was at is done again.

    Args:
        workers: how many jobs.
        cluster: ``slurm``, or ``local``: processes of this machine, to rehearse with.
        folder: where submitit keeps what it submits, and what workers print; all machines must see it.
        host_name: of this machine for the others; None is its own name for itself.
        timeout_min: time limit of a job, in minutes.
        gpus_per_worker: GPUs of each; 0 is the CPU.
        cpus_per_worker: cores of each.
        mem_gb: memory of each.
        slurm: further options of submitit for SLURM, without ``slurm_``: ``{partition: gpu, account: mine}``.
    """

    name: ClassVar[str] = "submitit"
    needs: ClassVar[tuple[str, ...]] = ("submitit", "slurm")
    workers: int
    cluster: Literal["slurm", "local"]
    folder: str
    host_name: str | None
    timeout_min: int
    gpus_per_worker: int
    cpus_per_worker: int
    mem_gb: float
    slurm: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse counts that start nothing."""
        for name in ("workers", "timeout_min", "cpus_per_worker"):
            check_count(name, getattr(self, name))
        check_count("gpus_per_worker", self.gpus_per_worker, 0)
        if self.mem_gb <= 0:
            raise ValueError(f"executor.mem_gb must be above 0, got {self.mem_gb:g}")

    @property
    def count(self) -> int:
        """How many workers there are."""
        return self.workers

    @property
    def gives_gpus(self) -> bool:
        """Whether workers get GPUs."""
        return self.gpus_per_worker > 0

    @property
    def host(self) -> str:
        """This machine, as workers reach it."""
        return "127.0.0.1" if self.cluster == "local" else self.host_name or socket.getfqdn()

    def start(self, number: int, address: Address) -> Submitted:
        """Submit a job."""
        from submitit import AutoExecutor

        folder = Path(self.folder).absolute()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # the key of the connection lies in it
        executor = AutoExecutor(folder, cluster=self.cluster)
        executor.update_parameters(
            name=f"steering-{number}",
            timeout_min=self.timeout_min,
            gpus_per_node=self.gpus_per_worker,
            cpus_per_task=self.cpus_per_worker,
            mem_gb=self.mem_gb,
            **{f"slurm_{name}": value for name, value in self.slurm.items()},
        )
        return Submitted(executor.submit(_work, address, number))


def _work(address: Address, number: int) -> None:
    # Imported only in the job: the process that hands out work needs none of it.
    from harness.executors.worker import work

    work(address, number)


class Submitted:
    """A job that was submitted. Implements `Started`."""

    def __init__(self, job: Any) -> None:
        self._job = job

    def ended(self) -> str | None:
        """What submitit says of it, once it has ended."""
        if not self._job.done():
            return None
        lines = (self._job.stderr() or self._job.state).strip().splitlines()
        return f"job {self._job.job_id}: {lines[-1] if lines else 'it printed nothing'} ({self._job.paths.stderr})"

    def stop(self) -> None:
        """Cancel it."""
        self._job.cancel(check=False)
