"""What a fit has besides data and the model: a place for checkpoints, a display, an account."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@contextmanager
def silent(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress display that shows nothing."""
    del title, total
    yield lambda _count: None


@dataclass(frozen=True)
class Cost:
    """What a training took, over all sessions if it was interrupted.

    Args:
        examples: how many were learnt from, each counted as often as it was.
        tokens: their tokens, without padding.
        seconds: wall time.
    """

    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Workspace:
    """What a fit has besides the model.

    Args:
        folder: where checkpoints are kept until the fit is done; None keeps none.
        save_every: seconds between two checkpoints.
        progress: shows a bar with this title and total; yields what is called with the number of steps just done.
        costs: every training adds what it took.
    """

    folder: Path | None = None
    save_every: float = 30.0
    progress: Callable[[str, int], AbstractContextManager[Callable[[int], None]]] = silent
    costs: list[Cost] = field(default_factory=list)
