"""How much a number of examples can show: what it would have found, how many would settle a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm

POWER = 0.8
MOST = 100_000
"""Beyond so many examples nobody is told how many it would take."""
_EXACT_UP_TO = 3_000


def detectable_effect(gaps: Sequence[float] | np.ndarray, binary: bool, alpha: float = 0.05) -> float | None:
    """Smallest true mean difference that this many pairs would find with 80 % power.

    Args:
        gaps: the observed differences; their spread (or, for pass/fail, the share of examples that changed) is taken
            as that of the experiment that is being planned.
        binary: pass/fail scores, tested with exact McNemar.
        alpha: level of the test; divide by the number of comparisons for Holm's strictest step.

    Returns:
        The effect in the unit of the metric, or None if no effect can reach that power (or nothing varies).
    """
    data = np.asarray(gaps, dtype=float)
    if binary:
        return detectable_share(data.size, max(float((data != 0).mean()), 1 / data.size), alpha)
    if data.size < fewest_pairs(alpha) or data.std(ddof=1) == 0:
        return None
    return float(data.std(ddof=1) * standard_effect(data.size, alpha))


def fewest_pairs(alpha: float) -> int:
    """Pairs below which no difference reaches this level, however large: all signs are alike in 2 of 2^n cases."""
    return math.ceil(1 - math.log2(alpha))


def standard_effect(count: int, alpha: float) -> float:
    """The same in standard deviations of the differences, for scores that are not pass/fail."""
    return float((norm.ppf(1 - alpha / 2) + norm.ppf(POWER)) / math.sqrt(count))


def detectable_share(count: int, changed: float, alpha: float) -> float | None:
    """The same for pass/fail scores, of which a share ``changed`` differs between the methods."""

    def shortfall(effect: float) -> float:
        return mcnemar_power(count, max(changed, effect), effect, alpha) - POWER

    return None if shortfall(1.0) < 0 else float(np.asarray(brentq(shortfall, 1e-9, 1.0, xtol=1e-4)))


def units_needed(effect: float, spread: float, binary: bool, alpha: float = 0.05) -> int | None:
    """How many pairs would find a true difference with 80 % power.

    Args:
        effect: the mean difference, of either sign.
        spread: standard deviation of the differences; for pass/fail scores the share that differs between the methods.
        binary: pass/fail scores, tested with exact McNemar.
        alpha: level of the test.

    Returns:
        The number, rounded up to two digits, or None if it is beyond `MOST`.
    """
    effect = abs(effect)
    if effect == 0 or spread == 0:
        return None
    tails = norm.ppf(1 - alpha / 2), norm.ppf(POWER)
    if binary:
        spread = max(spread, effect)
        rough = ((tails[0] * math.sqrt(spread) + tails[1] * math.sqrt(spread - effect**2)) / effect) ** 2
    else:
        rough = (sum(tails) * spread / effect) ** 2
    if rough > MOST:
        return None
    needed = math.ceil(rough) if binary else max(math.ceil(rough), fewest_pairs(alpha))
    if binary and needed <= _EXACT_UP_TO:
        # The exact test asks for some more than the textbook's approximation says.
        while mcnemar_power(needed, spread, effect, alpha) < POWER:
            needed = math.ceil(needed * 1.02)
    step = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return math.ceil(needed / step) * step


def mcnemar_power(count: int, changed: float, effect: float, alpha: float = 0.05) -> float:
    """Chance that exact McNemar rejects.

    Args:
        count: number of pairs.
        changed: probability that an example differs between the methods, ``effect`` to 1.
        effect: probability of a gain minus probability of a loss.
        alpha: level of the test.
    """
    flips = np.arange(count + 1)
    limits = _rejection_limits(count, alpha)
    upward = min(1.0, (changed + effect) / (2 * changed))
    reject = np.where(limits < 0, 0.0, binom.sf(flips - limits - 1, flips, upward) + binom.cdf(limits, flips, upward))
    return float((binom.pmf(flips, count, changed) * reject).sum())


def _rejection_limits(count: int, alpha: float) -> np.ndarray:
    """Largest number of flips the rarer way at which exact McNemar still rejects, per number of flips; -1 for never."""
    flips = np.arange(count + 1)
    limits = binom.ppf(alpha / 2, flips, 0.5)
    limits = np.where(2 * binom.cdf(limits, flips, 0.5) <= alpha, limits, limits - 1)
    return np.where(flips == 0, -1, limits)
