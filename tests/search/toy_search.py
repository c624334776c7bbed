"""An evaluator whose best parameters are known, and a workbench that remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harness.flow import Following
from harness.types import Evaluator, Generation, Metric, Record, Score, Tools
from harness.workbench import Request, Workbench


@dataclass(frozen=True, kw_only=True)
class Marked(Evaluator):
    """Scores a generation by its first parameter alone: 1 at `best`, less elsewhere."""

    metrics = (Metric("closeness", higher_is_better=True, low=-100.0, high=1.0),)
    best: float = 0.6
    unsteered: float = -100.0

    def score(self, records: list[Record], tools: Tools) -> list[Score]:
        return [Score(record.example.id, "closeness", self._worth(record)) for record in records]

    def _worth(self, record: Record) -> float:
        values = list(record.generation.parameters.values())
        return 1 - abs(values[0] - self.best) if values else self.unsteered


@dataclass
class Watched(Workbench):
    """A workbench that remembers its requests."""

    asked: list[Request] = field(default_factory=list)
    rounds: list[list[Request]] = field(default_factory=list)

    def run_on(
        self,
        requests: Sequence[Request],
        following: Following | None,
        on_finish: Callable[[], None] | None = None,
    ) -> list[Generation]:
        self.asked += requests

        def watched(finished: Sequence[tuple[Request, Generation]]) -> Sequence[Request]:
            self.rounds.append([request for request, _ in finished])
            more = following(finished) if following is not None else []
            self.asked += more
            return more

        return super().run_on(requests, watched, on_finish)
