"""How figures are written, in the terminal and in the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from harness.report.compare import Contrast
from harness.report.paired import Difference
from harness.scoring import Estimate, Metric


def metric_label(metric: Metric) -> str:
    """Name of a metric with an arrow towards the better side."""
    return f"{metric.name} {'↑' if metric.higher_is_better else '↓'}"


def trust_text(calibration: Mapping[str, Any]) -> str:
    """A judge with its agreement with people, and whether it can be relied on."""
    kappa, low, high = (calibration.get(key) for key in ("kappa", "low", "high"))
    agreement = "" if kappa is None else f", kappa {number(kappa)} [{number(low)}, {number(high)}]"
    return f"{calibration['judge']}: {calibration['mark']}{agreement}"


def is_doubtful(calibration: Mapping[str, Any] | None) -> bool:
    """Whether a judge's figures need a mark wherever they appear."""
    return calibration is not None and calibration["mark"] != "trustworthy"


def number(value: float | None) -> str:
    """A figure with three digits where they matter; a dash if there is none."""
    if value is None:
        return "—"
    digits = 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.3g}"


def estimate_text(estimate: Estimate | None) -> str:
    """Value with its interval, and how many examples were unscored."""
    if estimate is None or estimate.value is None:
        return "—"
    unscored = f" ({estimate.num_unscored} unscored)" if estimate.num_unscored else ""
    return f"{number(estimate.value)} [{_end(estimate.low)}, {_end(estimate.high)}]{unscored}"


def _end(value: float | None) -> str:
    """An end of an interval: two digits are enough."""
    return number(value) if value is None or abs(value) >= 1000 else f"{value:.{2 if abs(value) < 10 else 0}f}"


def signed(gap: Difference) -> str:
    """A difference with its sign and interval."""
    plus = "+" if gap.value > 0 else ""
    return f"{plus}{number(gap.value)} [{number(gap.low)}, {number(gap.high)}]"


def p_text(contrast: Contrast) -> str:
    """Corrected p-value, or a dash where nothing was tested."""
    if contrast.p_holm is None:
        return "—"
    return "< 0.001" if contrast.p_holm < 0.001 else f"{contrast.p_holm:.3f}"


def finite(value: Any) -> Any:
    """The same value with every number that JSON cannot hold replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
