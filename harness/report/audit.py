"""A mean of judged scores corrected by a second judge's scores of a random part: prediction-powered inference.

**Source** Angelopoulos et al. 2023 (arXiv:2301.09633), with the tuning of Angelopoulos et al. 2023 (arXiv:2311.01453).
**Deviations** The second judge scores a part of the same examples rather than others, so that the variance is that of
a two-phase sample; two invented disagreements, one in each direction, enter the variance, because a part of 60 in which
the judges happen to agree does not show that they always do; quantiles of Student's t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

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


def audited_score(details: Mapping[str, Any]) -> float | None:
    """What the second judge's verdict makes of a score, from the score's details; None where it gave none."""
    score = (details.get("audit") or {}).get("score")
    return None if score is None else float(score)
