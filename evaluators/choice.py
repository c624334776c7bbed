"""Which of the given options a model finds most likely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.types import Evaluator, Metric, Record, Score, Tools


@dataclass(frozen=True, kw_only=True)
class Choice(Evaluator):
    """Log-likelihoods of options, compared with the wanted one.

    - ``choice_accuracy``: 1 if the wanted option is strictly more likely than every other, else 0 (a tie is no choice).
    - ``logit_difference``: log-probability of the wanted option less that of the likeliest other one, in nats; without
      bounds. For two letters as options it is the difference of their logits. Its slope over steering strengths is an
      example's steerability.
    - ``choice_probability``: probability of all right options, normalised over the options; 0 to 1.

    With two options the three say the same thing at different grain. TruthfulQA's MC1 is ``choice_accuracy`` and its
    MC2 is ``choice_probability`` (Lin et al. 2022, arXiv:2109.07958): a task may limit which options count for each by
    the metadata ``mc1`` and ``mc2`` and name the right ones by ``true`` (lists of indices); else all options count and
    the target is right.

    Direction: higher is better, for all. Unscored: a record with fewer than two options, without target, or whose
    log-probabilities are missing or not finite. Cost: none; the log-probabilities stand in the record.

    Args:
        max_unscored: largest share of records that may stay unscored.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("choice_accuracy", higher_is_better=True, low=0, high=1, kind="proportion"),
        Metric("logit_difference", higher_is_better=True, low=-math.inf, high=math.inf),
        Metric("choice_probability", higher_is_better=True, low=0, high=1),
    )

    choices: ClassVar[bool] = True
    """Tasks without options are refused."""

    max_unscored: float = 1.0

    def score(self, records: Sequence[Record], tools: Tools) -> list[Score]:
        """Three scores per record."""
        return [score for record in records for score in self._scores(record)]

    def _scores(self, record: Record) -> list[Score]:
        name, reason = record.example.id, _unscorable(record)
        if reason:
            return [Score(name, metric.name, None, reason) for metric in self.metrics]
        difference = _difference(record, record.example.target or 0)
        values = (float(difference > 0), difference, _probability(record))
        return [Score(name, metric.name, value) for metric, value in zip(self.metrics, values, strict=True)]


def _unscorable(record: Record) -> str:
    example, logprobs = record.example, record.generation.choice_logprobs
    if len(example.choices) < 2 or example.target is None:
        return "the example has no two options and target to compare"
    if len(logprobs) != len(example.choices):
        return f"the record holds {len(logprobs)} log-probabilities for {len(example.choices)} options"
    if not all(math.isfinite(value) for value in logprobs):
        return f"log-probabilities must be finite, got {logprobs}"
    return ""


def _difference(record: Record, target: int) -> float:
    logprobs = record.generation.choice_logprobs
    counted = record.example.metadata.get("mc1", range(len(logprobs)))
    return logprobs[target] - max(logprobs[option] for option in counted if option != target)


def _probability(record: Record) -> float:
    logprobs, metadata = record.generation.choice_logprobs, record.example.metadata
    counted = metadata.get("mc2", range(len(logprobs)))
    right = set(metadata.get("true", [record.example.target]))
    top = max(logprobs[option] for option in counted)
    weights = {option: math.exp(logprobs[option] - top) for option in counted}
    return sum(weight for option, weight in weights.items() if option in right) / sum(weights.values())
