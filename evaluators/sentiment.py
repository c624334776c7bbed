"""Did the text turn positive, and did neutral text stay as it was?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from harness.types import Evaluator, Metric, Record, Score, Tools


@dataclass(frozen=True, kw_only=True)
class Sentiment(Evaluator):
    """Sentiment on *source* prompts, and what is left alone on *control* prompts (the example's group).

    On source prompts, whose options are a positive and a negative continuation:

    - ``target_logratio``: log-probability of the positive continuation less that of the negative one, in nats, summed
      over tokens; without bounds. The two differ in length, so only its change under steering has a meaning.
    - ``prefers_target``: 1 if that difference is above 0, else 0.
    - ``vader_source``: VADER's compound sentiment of what was generated; -1 (negative) to 1 (positive).

    On control prompts, whose one option is a neutral continuation:

    - ``control_logprob``: log-probability of that continuation in nats; 0 or less. It falls where steering reaches
      neutral text.
    - ``control_neutrality``: 1 less the absolute compound sentiment of what was generated; 0 to 1.

    Direction: higher is better, for all. Unscored: each metric on prompts of the other group, log-probabilities that
    are missing or not finite, empty generations for VADER. Cost: none; VADER (Hutto & Gilbert 2014) is a word list with
    rules, so it judges wording and not meaning: read it together with the log-probabilities.

    Args:
        max_unscored: largest share of records that may stay unscored; each metric is at home in one of two groups.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("target_logratio", higher_is_better=True, low=-math.inf, high=math.inf),
        Metric("prefers_target", higher_is_better=True, low=0, high=1, kind="proportion"),
        Metric("vader_source", higher_is_better=True, low=-1, high=1),
        Metric("control_logprob", higher_is_better=True, low=-math.inf, high=0),
        Metric("control_neutrality", higher_is_better=True, low=0, high=1),
    )

    choices: ClassVar[bool] = True
    """Tasks without options are refused."""

    max_unscored: float = 1.0

    def score(self, records: Sequence[Record], tools: Tools) -> list[Score]:
        """Five scores per record, those of the other group unscored."""
        return [score for record in records for score in _scores(record)]


def _scores(record: Record) -> list[Score]:
    name, group = record.example.id, record.example.group
    scored = {"source": _source, "control": _control}.get(group, lambda _: [])(record)
    reason = f"not measured on {group or 'ungrouped'} prompts"
    others = {metric.name for metric in Sentiment.metrics} - {score.metric for score in scored}
    return scored + [Score(name, metric, None, reason) for metric in sorted(others)]


def _source(record: Record) -> list[Score]:
    name, reason = record.example.id, _missing(record, 2)
    if reason:
        likelihoods = [Score(name, metric, None, reason) for metric in ("target_logratio", "prefers_target")]
    else:
        positive, negative = record.generation.choice_logprobs
        ratio = positive - negative
        likelihoods = [Score(name, "target_logratio", ratio), Score(name, "prefers_target", float(ratio > 0))]
    return [*likelihoods, _vader(record, "vader_source")]


def _control(record: Record) -> list[Score]:
    name, reason = record.example.id, _missing(record, 1)
    value = None if reason else min(0.0, record.generation.choice_logprobs[0])
    return [Score(name, "control_logprob", value, reason), _vader(record, "control_neutrality")]


def _missing(record: Record, count: int) -> str:
    logprobs = record.generation.choice_logprobs
    if len(logprobs) != count:
        return f"the record holds {len(logprobs)} log-probabilities, wanted {count}"
    return (
        "" if all(math.isfinite(value) for value in logprobs) else f"log-probabilities must be finite, got {logprobs}"
    )


def _vader(record: Record, metric: str) -> Score:
    text = record.generation.text
    if not text.strip():
        return Score(record.example.id, metric, None, "the completion is empty")
    compound = _analyser().polarity_scores(text)["compound"]
    return Score(record.example.id, metric, compound if metric == "vader_source" else 1 - abs(compound))


@cache
def _analyser() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()
