"""Workers in processes of this machine (``executor=processes``)."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

from harness import workers as gpus
from harness.executors.executor import Address, Executor, check_count
from harness.scoring import Judge

_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Processes(Executor):
    """Processes of this machine, each with GPUs of its own where there are enough.

    Args:
        workers: how many; None is as many as GPUs suffice for, or two without any.
        gpus_per_worker: GPUs of each; more than one for ``model.tensor_parallel``.
        threads: threads of each on a CPU; None shares the cores among them, unless OMP_NUM_THREADS is set.
    """

    any_machine: ClassVar[bool] = False
    name: ClassVar[str] = "processes"
    workers: int | None
    threads: int | None
    gpus_per_worker: int = 1

    def __post_init__(self) -> None:
        """Refuse counts below 1."""
        for field in ("workers", "threads", "gpus_per_worker"):
            if (value := getattr(self, field)) is not None:
                check_count(field, value)

    @property
    def count(self) -> int:
        """How many workers there are."""
        return self.workers or max(1, gpus.one_per_gpu(without=2 * self.gpus_per_worker) // self.gpus_per_worker)

    @property
    def gpus_of_each(self) -> float | None:
        """GPUs of each worker; None on a machine without any."""
        return self.gpus_per_worker if gpus.visible_gpus() else None

    def check(self, searching_judge: Judge | None = None, ranks: int = 1) -> None:
        """Refuse also more GPUs for a worker than this machine has. See `Executor.check`."""
        super().check(searching_judge, ranks)
        visible = gpus.visible_gpus()
        if visible and self.gpus_per_worker > len(visible):
            raise ValueError(
                f"executor.gpus_per_worker must be at most {len(visible)}, the GPUs here, got {self.gpus_per_worker}"
            )

    @property
    def host(self) -> str:
        """This machine, as it calls itself."""
        return "127.0.0.1"

    def start(self, number: int, address: Address) -> Process:
        """Start a process that sees its own GPUs alone, if there are any."""
        threads = self.threads or max(1, len(os.sched_getaffinity(0)) // self.count)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if self.threads or "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(threads)
        if visible := gpus.visible_gpus():
            first = number * self.gpus_per_worker
            own = [visible[place % len(visible)] for place in range(first, first + self.gpus_per_worker)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(own))
        environment.pop(gpus.PLACES, None)  # its place is decided here

        command = [sys.executable, "-m", "harness.executors.worker", address.host, str(address.port), str(number)]
        # A session of its own: Ctrl-C ends this process, and the end of the connection ends the worker.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as keyhole:  # it may have ended at once
            keyhole.write(address.key.hex().encode() + b"\n")
        return Process(process)


class Process:
    """A process that was started. Implements `Started`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def ended(self) -> str | None:
        """Its exit status, once it has one."""
        status = self._process.poll()
        return None if status is None else f"process {self._process.pid} ended with status {status}"

    def stop(self) -> None:
        """Kill it and wait until it is gone: it writes nothing that could be torn."""
        self._process.kill()
        self._process.wait(_PATIENCE_SECONDS)
