"""Where the pieces of one job are done: in this process, or in workers that each hold the model (``executor=…``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from harness.scoring import Judge


@dataclass(frozen=True)
class Address:
    """Where workers reach the process that hands out work.

    Args:
        host: address of its machine.
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
    name: ClassVar[str]
    """What it is called on the command line."""

    @property
    def count(self) -> int:
        """How many workers there are."""
        raise NotImplementedError

    @property
    def host(self) -> str:
        """The address at which workers reach this process."""
        raise NotImplementedError

    def check(self, searching_judge: Judge | None = None) -> None:
        """Raise for what cannot work, before anything is loaded.

        Args:
            searching_judge: the judge that the job's search calls on.

        Raises:
            ValueError: a limit cannot be kept.
        """
        for limit in ("max_calls", "max_cost"):
            if searching_judge is not None and not self.is_here and getattr(searching_judge, limit, None) is not None:
                raise ValueError(
                    f"judge.{limit} is counted in one process, and executor={self.name} would have the search call "
                    f"the judge from {self.count}: take executor=here, or judge.{limit}=null"
                )

    def start(self, number: int, address: Address) -> Started:
        """Start a worker; `harness.executors.worker.work` is what it runs.

        Args:
            number: its place, from 0.
            address: where it reports.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Here(Executor):
    """This process does everything itself."""

    is_here: ClassVar[bool] = True
    name: ClassVar[str] = "here"


def check_count(name: str, value: int) -> None:
    """Raise ValueError for a setting of an executor below 1."""
    if value < 1:
        raise ValueError(f"executor.{name} must be at least 1, got {value}")
