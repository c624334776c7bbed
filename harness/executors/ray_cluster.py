"""Workers as tasks of a Ray cluster (``executor=ray``)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.executors.executor import Address, Executor, check_count

_STORE_BYTES = 100 * 2**20
"""Memory of a cluster of this machine for objects: nothing but the arguments of its tasks lies there."""


@dataclass(frozen=True, kw_only=True)
class Ray(Executor):
    """Tasks of a Ray cluster that lasts, or of one of this machine alone that ends with the command.

    Only the start of workers is Ray's: what they are sent and send goes over connections to this process.

    Args:
        workers: how many; one that finds no room waits until there is some.
        address: of a cluster's head; None is RAY_ADDRESS if it is set, else a cluster of this machine.
        gpus_per_worker: GPUs of each; 0 is the CPU.
        cpus_per_worker: cores of each.
    """

    name: ClassVar[str] = "ray"
    needs: ClassVar[tuple[str, ...]] = ("ray", "ray")
    workers: int
    address: str | None
    gpus_per_worker: float
    cpus_per_worker: float

    def __post_init__(self) -> None:
        """Refuse counts that start nothing."""
        check_count("workers", self.workers)
        check_count("gpus_per_worker", self.gpus_per_worker, 0)
        check_count("cpus_per_worker", self.cpus_per_worker, 0)

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
        """This machine, as the cluster knows it."""
        import ray

        self._connect()
        return ray.util.get_node_ip_address()

    def _connect(self) -> None:
        import ray

        if ray.is_initialized():
            return
        address = self.address or os.environ.get("RAY_ADDRESS")
        if address is not None:
            ray.init(address, log_to_driver=False)
            return
        cores = max(len(os.sched_getaffinity(0)), round(self.workers * self.cpus_per_worker))
        ray.init(
            "local",
            num_cpus=cores,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            log_to_driver=False,
        )

    def start(self, number: int, address: Address) -> Task:
        """Hand the cluster a task, which it starts where there is room."""
        import ray

        self._connect()
        # Never repeated by Ray: whoever notices that a worker is lost starts another one.
        options = {"num_cpus": self.cpus_per_worker, "num_gpus": self.gpus_per_worker, "max_retries": 0}
        return Task(ray.remote(**options)(_work).remote(address, number))

    def close(self) -> None:
        """Leave the cluster."""
        import ray

        ray.shutdown()


def _work(address: Address, number: int) -> None:
    # Imported only in the task: the process that hands out work needs none of it.
    from harness.executors.worker import work

    work(address, number)


class Task:
    """A task that was handed to Ray. Implements `Started`."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def ended(self) -> str | None:
        """What Ray says of it, once it has ended."""
        import ray

        if not ray.wait([self._reference], timeout=0)[0]:
            return None
        try:
            ray.get(self._reference)
        except Exception as error:  # Ray raises whatever the task died of
            return f"{type(error).__name__}: {str(error).strip()}"
        return "its task ended"

    def stop(self) -> None:
        """End its process."""
        import ray

        ray.cancel(self._reference, force=True)
