"""Where the pieces of one job are done: in this process, or in workers that each hold the model (``executor=…``)."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from harness.scoring import Judge
from harness.subject import sharding
from harness.subject.load import ModelConfig, ResolvedModel, resolve


@dataclass(frozen=True)
class Address:
    """Where workers reach the process that hands out work.

    Args:
        host: name or number of its machine.
        port: where it listens.
        key: what both sides prove to each other that they know.
    """

    host: str
    port: int
    key: bytes


class Started(Protocol):
    """A worker that was started, or waits for its turn to be."""

    def ended(self) -> str | None:
        """Why it has ended; None as long as it has not."""
        ...

    def stop(self) -> None:
        """End it; nothing happens if it has ended."""
        ...


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Who does the pieces of a job that need its model. It decides nothing about results, so it is part of no key.

    An executor only knows how to start a worker somewhere; `harness.executors.crew` does the rest.
    """

    is_here: ClassVar[bool] = False
    """Whether this process does them itself."""
    any_machine: ClassVar[bool] = True
    """Whether workers may live on other machines than this one."""
    name: ClassVar[str]
    """What it is called on the command line."""
    needs: ClassVar[tuple[str, ...]] = ()
    """A package that must be installed, and the extra that installs it."""

    @property
    def count(self) -> int:
        """How many workers there are."""
        raise NotImplementedError

    @property
    def host(self) -> str:
        """Under which name or number workers reach this machine."""
        raise NotImplementedError

    @property
    def gives_gpus(self) -> bool:
        """Whether workers get GPUs that this process need not have."""
        return False

    @property
    def gpus_of_each(self) -> float | None:
        """GPUs of each worker; None where they get none."""
        return getattr(self, "gpus_per_worker", 0) or None

    def check(self, searching_judge: Judge | None = None, ranks: int = 1) -> None:
        """Raise for what cannot work, before anything is loaded.

        Args:
            searching_judge: the judge that the job's search calls on.
            ranks: processes that share the model's weights.

        Raises:
            ValueError: a package is missing, a limit cannot be kept, or there are no workers to share a model.
        """
        if self.needs and importlib.util.find_spec(self.needs[0]) is None:
            raise ValueError(f"executor={self.name} is not installed: pip install 'steering-harness[{self.needs[1]}]'")
        if ranks > 1:
            self._check_sharing(ranks, searching_judge)

        # A judge in another process counts for itself, so a limit would hold once for each worker.
        for limit in ("max_calls", "max_cost"):
            if searching_judge is not None and not self.is_here and getattr(searching_judge, limit, None) is not None:
                raise ValueError(
                    f"judge.{limit} is counted in one process, and executor={self.name} would have the search call "
                    f"the judge from {self.count}: take executor=here, or judge.{limit}=null"
                )

    def _check_sharing(self, ranks: int, searching_judge: Judge | None) -> None:
        """Raise where several processes cannot share a model."""
        if self.is_here:
            raise ValueError(
                f"model.tensor_parallel={ranks} needs workers, each of them {ranks} processes: add executor=processes, "
                "ray or submitit"
            )

        if self.gpus_of_each is not None and self.gpus_of_each < ranks:
            raise ValueError(
                f"model.tensor_parallel={ranks} needs executor.gpus_per_worker={ranks}, got {self.gpus_of_each:g}"
            )

        if searching_judge is not None:
            raise ValueError(
                f"model.tensor_parallel={ranks} cannot be combined with an objective that asks a judge: every process "
                "would ask it anew"
            )

    def resolved(self, config: ModelConfig) -> ResolvedModel:
        """The model that a configuration stands for, on the device that it will live on."""
        if not self.gives_gpus or config.device == "cpu":
            return resolve(config)
        # This machine may have no GPU: it looks the model up as for its CPU, and never loads it.
        ranks = config.tensor_parallel
        on_cpu = resolve(dataclasses.replace(config, device="cpu", tensor_parallel=1))
        device = torch.device("cuda" if config.device == "auto" else config.device)
        sharding.check_device(device, ranks)
        layout = sharding.layout_of_shares(on_cpu.layout, on_cpu.settings, ranks)
        return dataclasses.replace(on_cpu, config=config, device=device, layout=layout)

    def start(self, number: int, address: Address) -> Started:
        """Start a worker; `harness.executors.worker.work` is what it runs.

        Args:
            number: its place, from 0.
            address: where it reports.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give back what starting workers took, after the last one has ended."""


@dataclass(frozen=True, kw_only=True)
class Here(Executor):
    """This process does everything itself."""

    is_here: ClassVar[bool] = True
    name: ClassVar[str] = "here"


def check_count(name: str, value: float, least: float = 1) -> None:
    """Raise ValueError for a setting of an executor below its least value."""
    if value < least:
        raise ValueError(f"executor.{name} must be at least {least:g}, got {value:g}")
