"""How figures are written, in the terminal and in the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.report.audit import Corrected
from harness.report.claims import Claim
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
    """Value with its interval."""
    if estimate is None or estimate.value is None:
        return "—"
    return f"{number(estimate.value)} {_interval(estimate.low, estimate.high)}"


def corrected_text(correction: Corrected | None) -> str:
    """A corrected mean with its interval, short: two digits."""
    if correction is None:
        return "—"
    return f"{correction.value:.{_digits(correction.value)}f} {_interval(correction.low, correction.high)}"


def gain_text(gain: tuple[float, float | None, float | None], is_ratio: bool) -> str:
    """A difference with its interval, short: two digits, or a ratio where logarithms were compared."""
    value, low, high = gain
    if is_ratio:
        return f"×{math.exp(value):.2f} {_interval(*(end if end is None else math.exp(end) for end in (low, high)))}"
    return f"{value:+.{_digits(value)}f} {_interval(low, high)}"


def _interval(low: float | None, high: float | None) -> str:
    return f"[{_end(low)}, {_end(high)}]"


def _end(value: float | None) -> str:
    """An end of an interval: two digits are enough."""
    return number(value) if value is None or abs(value) >= 1000 else f"{value:.{_digits(value)}f}"


def _digits(value: float) -> int:
    return 2 if abs(value) < 10 else 0


def signed(gap: Difference) -> str:
    """A difference with its interval: with its sign, or as a ratio where logarithms were compared."""
    if gap.is_ratio:
        ratio, low, high = (None if end is None else math.exp(end) for end in (gap.value, gap.low, gap.high))
        return f"×{number(ratio)} [{number(low)}, {number(high)}]"
    plus = "+" if gap.value > 0 else ""
    return f"{plus}{number(gap.value)} [{number(gap.low)}, {number(gap.high)}]"


def p_text(p: float | None) -> str:
    """A p-value, or a dash where nothing was tested."""
    if p is None:
        return "—"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def verdict_text(claim: Claim) -> str:
    """What became of a claim, with how many units would settle what is not settled."""
    if claim.untested:
        return f"not tested: {claim.untested}"
    return f"not settled: {claim.needed:,} needed" if claim.needed else claim.verdict


def joined(words: Sequence[str]) -> str:
    """Words as in a sentence: "a, b and c"."""
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)


def finite(value: Any) -> Any:
    """The same value with every number that JSON cannot hold replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
