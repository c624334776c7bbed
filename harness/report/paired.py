"""Two methods on the same examples: the difference, its interval, its test, who gained and who was made worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm
from statsmodels.stats.multitest import multipletests

from harness.scoring import Metric
from harness.statistics import DRAWS, is_binary, mean_interval

POWER = 0.8
_EXACT_UP_TO = 13
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Difference:
    """``ours - theirs`` on the examples that both scored.

    Args:
        metric: name of the metric.
        value: mean difference; above 0 means that ours is higher, which is worse for a metric to be lowered.
        low: lower end of the 95 % interval, None if nothing bounds it.
        high: upper end, likewise.
        num_pairs: examples scored by both.
        gained: ids on which ours is better.
        lost: ids on which ours is worse.
        share_worse: ``len(lost) / num_pairs``.
        test: "mcnemar" (exact) for pass/fail scores, "permutation" (sign flips) for others.
        p: two-sided p-value before Holm's correction.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    num_pairs: int
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    share_worse: float
    test: Literal["mcnemar", "permutation"]
    p: float


def paired_difference(
    metric: Metric, ours: Mapping[str, float], theirs: Mapping[str, float], seed: int = 0, draws: int = DRAWS
) -> Difference | None:
    """Compare two methods example by example.

    Args:
        metric: what was measured; its direction says which sign is better, its range bounds the interval.
        ours: score by example id, unscored examples left out.
        theirs: likewise.
        seed: seed of the bootstrap and of the permutations.
        draws: resamples of the bootstrap.

    Returns:
        The difference, or None if no example was scored by both.
    """
    shared = [example for example in ours if example in theirs]
    if not shared:
        return None
    mine, other = (np.array([side[example] for example in shared]) for side in (ours, theirs))
    gaps = mine - other
    better = gaps if metric.higher_is_better else -gaps
    gained = tuple(example for example, gap in zip(shared, better, strict=True) if gap > 0)
    lost = tuple(example for example, gap in zip(shared, better, strict=True) if gap < 0)
    span = metric.high - metric.low
    interval = mean_interval(gaps, (-span, span), draws=draws, seed=seed)
    low, high = (float(end) if np.isfinite(end) else None for end in interval)
    binary = is_binary(mine) and is_binary(other)
    p = mcnemar_p(len(gained), len(lost)) if binary else sign_flip_p(gaps, seed=seed)
    return Difference(
        metric=metric.name, value=float(gaps.mean()), low=low, high=high, num_pairs=len(shared), gained=gained,
        lost=lost, share_worse=len(lost) / len(shared), test="mcnemar" if binary else "permutation", p=p,
    )  # fmt: skip


def mcnemar_p(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: are gains and losses equally likely? 1 if nothing changed."""
    return 1.0 if gained + lost == 0 else float(binomtest(gained, gained + lost, 0.5).pvalue)


def sign_flip_p(differences: Sequence[float] | np.ndarray, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided paired permutation test of a mean difference of 0.

    Swapping the two methods on an example flips the sign of its difference. Up to 13 non-zero differences all swaps are
    enumerated; beyond that, ``draws`` random ones (ten times as many where p is below 0.01, so that Holm's correction
    does not meet a floor), counting the observed one among them so that p is never 0.
    """
    gaps = np.asarray(differences, dtype=float)
    gaps = gaps[gaps != 0]
    if gaps.size == 0:
        return 1.0
    threshold = abs(gaps.sum()) * (1 - 1e-12)
    if gaps.size <= _EXACT_UP_TO:
        codes = np.arange(2**gaps.size)[:, None] >> np.arange(gaps.size) & 1
        return float((np.abs((2 * codes - 1) @ gaps) >= threshold).mean())
    rng = np.random.default_rng(seed)
    extreme = _extreme_flips(gaps, threshold, draws, rng)
    if extreme < 0.01 * draws:
        extreme += _extreme_flips(gaps, threshold, 9 * draws, rng)
        draws *= 10
    return (extreme + 1) / (draws + 1)


def _extreme_flips(gaps: np.ndarray, threshold: float, draws: int, rng: np.random.Generator) -> int:
    """How many of ``draws`` random swaps give a total at least as far from 0 as the observed one."""
    sizes, counts = np.unique(np.abs(gaps), return_counts=True)
    extreme, done = 0, 0
    while done < draws:
        rows = min(draws - done, max(1, _CHUNK // sizes.size))
        upward = _coins(rng, rows, sizes.size) if (counts == 1).all() else rng.binomial(counts, 0.5, (rows, sizes.size))
        extreme += int((np.abs(2 * (upward @ sizes) - counts @ sizes) >= threshold).sum())
        done += rows
    return extreme


def _coins(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Zeros and ones, eight to a random byte: many times faster than drawing them one by one."""
    packed = rng.integers(0, 256, size=(rows, -(-columns // 8)), dtype=np.uint8)
    return np.unpackbits(packed, axis=1)[:, :columns]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction over all given tests; None (not tested) stays None and is not counted."""
    tested = [index for index, p in enumerate(p_values) if p is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    if tested:
        corrected = multipletests([p_values[index] for index in tested], method="holm")[1]
        for index, p in zip(tested, corrected, strict=True):
            adjusted[index] = float(p)
    return adjusted


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
        return _detectable_share(data.size, max(float((data != 0).mean()), 1 / data.size), alpha)
    if data.size < 2 or data.std(ddof=1) == 0:
        return None
    return float((norm.ppf(1 - alpha / 2) + norm.ppf(POWER)) * data.std(ddof=1) / np.sqrt(data.size))


def _detectable_share(count: int, changed: float, alpha: float) -> float | None:
    def shortfall(effect: float) -> float:
        return mcnemar_power(count, max(changed, effect), effect, alpha) - POWER

    return None if shortfall(1.0) < 0 else float(np.asarray(brentq(shortfall, 1e-9, 1.0, xtol=1e-4)))


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
