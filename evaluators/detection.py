"""Does a method find its concept in texts that have it, and only there?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from sklearn.metrics import f1_score, roc_auc_score, roc_curve

from harness.types import Evaluator, Metric, Record, RecordKind, Score, Tools


@dataclass(frozen=True, kw_only=True)
class Detection(Evaluator):
    """How well a method's latents tell texts with a concept from texts without it; one record per concept.

    - ``auroc``: area under the ROC curve, positive against negative texts; 0 to 1, 0.5 is chance.
    - ``auroc_hard``: the same against the hard negatives, which use a word of the concept in another sense.
    - ``f1``: of the threshold with the largest difference of true and false positive rates (Youden's, the authors'
      choice); the threshold is chosen on the very texts that it is judged on, so read it as an upper end. 0 to 1.

    Direction: higher is better, for all. Unscored: a method (or control) that reads no latents, a number of latents
    that is not the texts', values that are not finite, a concept without texts of both kinds. Cost: none.

    Source: Wu et al. 2025 (AxBench), arXiv:2501.17148, section 3 (concept detection). As in the authors' code, hard
    negatives stay out of the headline.

    Args:
        max_unscored: largest share of concepts that may stay unscored; many have no hard negatives.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("auroc", higher_is_better=True, low=0, high=1),
        Metric("auroc_hard", higher_is_better=True, low=0, high=1),
        Metric("f1", higher_is_better=True, low=0, high=1),
    )
    reads: ClassVar[RecordKind] = "latents"

    max_unscored: float = 1.0

    def score(self, records: Sequence[Record], tools: Tools) -> list[Score]:
        """Three scores per concept."""
        return [score for record in records for score in self._scores(record)]

    def _scores(self, record: Record) -> list[Score]:
        name, latents = record.example.id, record.generation.latents
        categories = record.example.metadata.get("categories", ())
        if reason := _unreadable(latents, categories):
            return [Score(name, metric.name, None, reason) for metric in self.metrics]

        of = {
            category: [value for value, own in zip(latents, categories, strict=True) if own == category]
            for category in ("positive", "negative", "hard negative")
        }
        plain = _Sample(of["positive"], of["negative"])
        hard = _Sample(of["positive"], of["hard negative"])
        return [
            plain.score(name, "auroc", plain.auroc),
            hard.score(name, "auroc_hard", hard.auroc),
            plain.score(name, "f1", plain.f1),
        ]


def _unreadable(latents: Sequence[float], categories: Sequence[str]) -> str:
    if not latents:
        return "the method read no latents"
    if len(latents) != len(categories):
        return f"the record holds {len(latents)} latents for {len(categories)} texts"
    return "" if all(map(math.isfinite, latents)) else "latents must be finite"


@dataclass(frozen=True)
class _Sample:
    """Latents of texts with the concept and of texts without it."""

    positive: Sequence[float]
    negative: Sequence[float]

    def score(self, name: str, metric: str, value: float | None) -> Score:
        reason = f"{len(self.positive)} texts with the concept and {len(self.negative)} without it"
        return Score(name, metric, value, reason if value is None else "")

    @property
    def _labelled(self) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat([1, 0], [len(self.positive), len(self.negative)])
        return labels, np.array([*self.positive, *self.negative], dtype=float)

    @property
    def auroc(self) -> float | None:
        return float(roc_auc_score(*self._labelled)) if self.positive and self.negative else None

    @property
    def f1(self) -> float | None:
        if not (self.positive and self.negative):
            return None
        labels, latents = self._labelled
        false_rates, true_rates, thresholds = roc_curve(labels, latents)
        return float(f1_score(labels, latents >= thresholds[np.argmax(true_rates - false_rates)]))
