"""Who carries out the pieces of a job: an interface, and the process itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from harness.progress import Advance
from harness.steps import Steps


def _unseen(_count: int) -> None:
    pass


class Hands(Protocol):
    """Carries out pieces of one job; their names are those of the methods of `harness.steps.Steps`."""

    def do(self, name: str, *arguments: Any, advance: Advance = _unseen) -> Any:
        """Carry out one piece and return what it returns. What it writes is in the store at once."""
        ...

    def do_all(self, name: str, each: Sequence[Any], advance: Advance = _unseen) -> None:
        """Carry out a piece for each of these arguments; what it writes is in the store in their order."""
        ...


class OwnHands:
    """This process, which holds the model itself.

    Args:
        steps: the job.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def do(self, name: str, *arguments: Any, advance: Advance = _unseen) -> Any:
        """See `Hands`."""
        return self._steps.carry_out(name, arguments, advance)

    def do_all(self, name: str, each: Sequence[Any], advance: Advance = _unseen) -> None:
        """See `Hands`."""
        for argument in each:
            self._steps.carry_out(name, (argument,), advance)
