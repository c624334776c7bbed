"""Does steering make texts with a concept likelier than matched texts without it? Needs no judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.types import Evaluator, Metric, Record, Score, Tools


@dataclass(frozen=True, kw_only=True)
class ConceptLikelihood(Evaluator):
    """Log-likelihoods under steering of a text with the concept and of a matched one without it.

    - ``concept_logratio``: log-probability of the first less that of the second, in nats, summed over tokens; without
      bounds. The two are different texts, so only its change under steering has a meaning.
    - ``prefers_concept``: 1 if that difference is above 0, else 0.
    - ``plain_logprob``: log-probability of the text without the concept, in nats; 0 or less. It falls where steering
      does not just add the concept but breaks the model; it falls a little in any case, since probability is shared.

    Direction: higher is better, for all. Unscored: a record that has not exactly two options, or whose
    log-probabilities are missing or not finite. Cost: none; the log-probabilities stand in the record.

    Args:
        max_unscored: largest share of records that may stay unscored.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("concept_logratio", higher_is_better=True, low=-math.inf, high=math.inf),
        Metric("prefers_concept", higher_is_better=True, low=0, high=1, kind="proportion"),
        Metric("plain_logprob", higher_is_better=True, low=-math.inf, high=0),
    )

    choices: ClassVar[bool] = True
    """Tasks without options are refused."""

    max_unscored: float = 1.0

    def score(self, records: Sequence[Record], tools: Tools) -> list[Score]:
        """Three scores per record."""
        return [score for record in records for score in self._scores(record)]

    def _scores(self, record: Record) -> list[Score]:
        name, logprobs = record.example.id, record.generation.choice_logprobs
        if reason := _unscorable(record):
            return [Score(name, metric.name, None, reason) for metric in self.metrics]
        with_concept, plain = logprobs
        ratio = with_concept - plain
        values = (ratio, float(ratio > 0), min(0.0, plain))
        return [Score(name, metric.name, value) for metric, value in zip(self.metrics, values, strict=True)]


def _unscorable(record: Record) -> str:
    logprobs = record.generation.choice_logprobs
    if len(record.example.choices) != 2 or len(logprobs) != 2:
        return f"wanted two options, got {len(record.example.choices)} with {len(logprobs)} log-probabilities"
    return "" if all(map(math.isfinite, logprobs)) else f"log-probabilities must be finite, got {logprobs}"
