"""A mean of judged scores corrected by a second judge's scores of a random part: prediction-powered inference.

**Source** Angelopoulos et al. 2023 (arXiv:2301.09633), with the tuning of Angelopoulos et al. 2023 (arXiv:2311.01453).
**Deviations** The second judge scores a part of the same examples rather than others, so that the variance is that of
a two-phase sample; two invented disagreements, one in each direction, enter the variance, because a part of 60 in which
the judges happen to agree does not show that they always do; quantiles of Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from harness.report.entries import Entry
from harness.scoring import Metric

SMALLEST_AUDIT = 10
"""With fewer scores of the second judge there is no correction: their spread says nothing yet."""


@dataclass(frozen=True)
class Corrected:
    """A corrected mean with its 95 % interval, which covers sampling error and the first judge's error.

    It covers them as far as the second judge is right: what is estimated is the mean that it would have given.
    ``shift`` is how far the correction moved the plain mean of the judged scores.
    """

    value: float
    low: float
    high: float
    num_scored: int
    num_audited: int
    shift: float


def corrected(
    judged: Sequence[float], audited: Sequence[float | None], low: float = 0.0, high: float = 1.0
) -> Corrected | None:
    """The mean that the second judge would have given, from its scores of a random part.

    For the difference of two entries, pass the differences by example, and the limits of a difference.

    Args:
        judged: scores of the first judge, one per example (or per cluster of examples).
        audited: scores of the second judge for the same examples, None where it was not asked; which ones it was asked
            must hang on chance alone.
        low: smallest possible score.
        high: largest possible score.

    Returns:
        None with fewer than `SMALLEST_AUDIT` audited scores.

    Raises:
        ValueError: the two differ in length.
    """
    if len(judged) != len(audited):
        raise ValueError(f"{len(judged)} judged scores and {len(audited)} audited ones; one each is due")
    asked = [index for index, score in enumerate(audited) if score is not None]
    if len(asked) < SMALLEST_AUDIT:
        return None

    first_N = np.asarray(judged, dtype=float)
    second_A = np.array([audited[index] for index in asked], dtype=float)
    first_A = first_N[asked]
    total, part = len(first_N), len(asked)

    # the two disagreements that nobody saw
    second_wide, first_wide = np.append(second_A, [high, low]), np.append(first_A, [low, high])
    covariance = np.cov(second_wide, first_wide)
    weight = float(np.clip(covariance[0, 1] / covariance[1, 1], 0.0, 1.0))

    plain = float(first_N.mean())
    value = float(second_A.mean()) + weight * (plain - float(first_A.mean()))
    residual = float(np.var(second_wide - weight * first_wide, ddof=1))
    variance = (1 / part - 1 / total) * residual + float(covariance[0, 0]) / total
    half = float(stats.t.ppf(0.975, part - 1)) * variance**0.5
    limits = (max(low, value - half), min(high, value + half))
    return Corrected(min(max(value, low), high), *limits, total, part, value - plain)


def corrections(entry: Entry, declared: Mapping[str, Metric]) -> dict[str, Corrected]:
    """The corrected mean of every metric of which a second judge scored enough.

    Args:
        entry: whose scores.
        declared: metrics by name.
    """
    made = {}
    for name, metric in declared.items():
        if name in entry.metrics and _is_corrected(metric, entry):
            judged, audited = entry.means(name), entry.audited_means(name)
            made[name] = corrected(list(judged.values()), list(audited.values()), metric.low, metric.high)
    return {name: correction for name, correction in made.items() if correction is not None}


def _is_corrected(metric: Metric, *entries: Entry) -> bool:
    """Whether both judges' scores are there, on a scale with two ends, which the disagreements nobody saw reach."""
    was_audited = all(any(run.audits.get(metric.name) for run in entry.runs) for entry in entries)
    return was_audited and metric.kind != "geometric" and math.isfinite(metric.high - metric.low)


def corrected_gap(ours: Entry, theirs: Entry, metric: Metric) -> Corrected | None:
    """The corrected mean difference of two entries, over the units that both scored.

    The second judge is asked the same questions in every entry, so that most units are audited on both sides or on
    neither; one that is audited on one side alone counts as not audited.

    Args:
        ours: an entry.
        theirs: what it is held against.
        metric: what was measured.
    """
    if not _is_corrected(metric, ours, theirs):
        return None
    judged, others = ours.means(metric.name), theirs.means(metric.name)
    audited, audited_others = ours.audited_means(metric.name), theirs.audited_means(metric.name)
    shared = [unit for unit in judged if unit in others]
    pairs = [(audited[unit], audited_others[unit]) for unit in shared]
    gaps = [None if mine is None or other is None else mine - other for mine, other in pairs]
    span = metric.high - metric.low
    return corrected([judged[unit] - others[unit] for unit in shared], gaps, -span, span)
