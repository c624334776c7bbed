"""Which option a model prefers, and whether it answers with an option at all, on one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.types import Evaluator, Metric, Record, Score, Tools

_LEAST_ELSEWHERE = 1e-6
"""Probability that is always left to other answers: log-probabilities in float32 know no less."""
_MOST_UTILITY = math.log((1 - _LEAST_ELSEWHERE) / _LEAST_ELSEWHERE)


@dataclass(frozen=True, kw_only=True)
class PreferenceUtility(Evaluator):
    """Preference and utility log-odds of a choice between options, from the log-likelihoods in the record.

    A strong push moves the preference and may at the same time drive the model away from any sensible answer. The two
    log-odds show both against the strength of steering:

    - ``preference``: log-odds of the wanted option against all others, ``log p(wanted) - log sum p(others)``, in nats.
    - ``utility``: log-odds that the model answers with one of the options rather than with anything else,
      ``log S - log(1 - S)`` with ``S`` the probability of all options together, in nats; at most 13.8.

    **Source**: "Why Steering Works" (2026), arXiv:2602.02343, which splits the effect of steering so. Deviations:
    the options are those of the task, as many as it has, where the paper pairs two texts; ``S`` stays below 1 - 1e-6.

    Direction: higher is better, for both. Unscored: a record with fewer than two options, without target, or whose
    log-probabilities are missing or not finite. Cost: none; the log-probabilities stand in the record.

    Args:
        max_unscored: largest share of records that may stay unscored.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("preference", higher_is_better=True, low=-math.inf, high=math.inf),
        Metric("utility", higher_is_better=True, low=-math.inf, high=_MOST_UTILITY),
    )
    choices: ClassVar[bool] = True
    """Tasks without options are refused."""

    max_unscored: float = 1.0

    def score(self, records: Sequence[Record], tools: Tools) -> list[Score]:
        """Two scores per record."""
        return [score for record in records for score in self._scores(record)]

    def _scores(self, record: Record) -> list[Score]:
        example, logprobs = record.example, record.generation.choice_logprobs
        reason = ""
        if len(example.choices) < 2 or example.target is None:
            reason = "the example has no two options and target to compare"
        elif len(logprobs) != len(example.choices):
            reason = f"the record holds {len(logprobs)} log-probabilities for {len(example.choices)} options"
        elif not all(math.isfinite(value) for value in logprobs):
            reason = f"log-probabilities must be finite, got {logprobs}"
        if reason or example.target is None:
            return [Score(example.id, metric.name, None, reason) for metric in self.metrics]

        others = [value for option, value in enumerate(logprobs) if option != example.target]
        preference = logprobs[example.target] - _log_sum(others)
        log_any = min(_log_sum(logprobs), math.log1p(-_LEAST_ELSEWHERE))
        utility = min(log_any - math.log(-math.expm1(log_any)), _MOST_UTILITY)
        return [Score(example.id, "preference", preference), Score(example.id, "utility", utility)]


def _log_sum(values: Sequence[float]) -> float:
    """``log(sum(exp(values)))`` without overflow."""
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))
