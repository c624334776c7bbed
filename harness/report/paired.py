"""Two methods on the same examples: the difference, its interval, its test, who gained and who was made worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm

from harness.scoring import Metric
from harness.statistics import DRAWS, LEVEL, Interval, is_binary, mean_interval, scaled_bounds

_EXACT_UP_TO = 13
_NORMAL_FROM = 2_000
_LARGEST_SHARE = 0.005
"""Of the sum of squares, up to which no single difference keeps the sum of many random signs from being normal."""
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Difference:
    """``ours - theirs`` on the units that both scored, on the scale on which the metric is averaged.

    Args:
        metric: name of the metric.
        higher_is_better: its direction.
        is_ratio: whether the scale is one of logarithms, so that the difference is the log of a ratio.
        value: mean difference; above 0 means that ours is higher, which is worse for a metric to be lowered.
        low: lower end of the 95 % interval, None if nothing bounds it.
        high: upper end, likewise.
        num_pairs: units scored by both.
        spread: standard deviation of the differences; for pass/fail scores the share that differs.
        gained: units on which ours is better.
        lost: units on which ours is worse.
        share_worse: ``len(lost) / num_pairs``.
        test: "mcnemar" (exact) for pass/fail scores, "permutation" (sign flips) for others.
        p: two-sided p-value, not corrected for anything.
        p_better: one-sided p-value for "ours is better", likewise.
    """

    metric: str
    higher_is_better: bool
    is_ratio: bool
    value: float
    low: float | None
    high: float | None
    num_pairs: int
    spread: float
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    share_worse: float
    test: Literal["mcnemar", "permutation"]
    p: float
    p_better: float

    @property
    def gain(self) -> tuple[float, float | None, float | None]:
        """Value, low and high, turned so that above 0 is better."""
        if self.higher_is_better:
            return self.value, self.low, self.high
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return -self.value, low, high


def paired_difference(
    metric: Metric, ours: Mapping[str, float], theirs: Mapping[str, float], seed: int = 0, draws: int = DRAWS
) -> Difference | None:
    """Compare two methods unit by unit.

    Args:
        metric: what was measured; its direction says which sign is better, its range bounds the interval.
        ours: mean by unit on the metric's scale, unscored units left out.
        theirs: likewise.
        seed: seed of the bootstrap and of the permutations.
        draws: resamples of the bootstrap.

    Returns:
        The difference, or None if no unit was scored by both.
    """
    shared = [unit for unit in ours if unit in theirs]
    if not shared:
        return None
    mine, other = (np.array([side[unit] for unit in shared]) for side in (ours, theirs))
    gaps = mine - other
    better = gaps if metric.higher_is_better else -gaps
    gained = tuple(unit for unit, gap in zip(shared, better, strict=True) if gap > 0)
    lost = tuple(unit for unit, gap in zip(shared, better, strict=True) if gap < 0)

    binary = metric.kind == "proportion" and is_binary(mine) and is_binary(other)
    if binary:
        more, fewer = int((gaps > 0).sum()), int((gaps < 0).sum())
        interval, p = tango_interval(more, fewer, len(shared)), mcnemar_p(len(gained), len(lost))
        p_better = float(binom.sf(len(gained) - 1, len(gained) + len(lost), 0.5))
    else:
        bounds = scaled_bounds(metric)
        span = bounds[1] - bounds[0]
        interval, p = mean_interval(gaps, (-span, span), draws=draws, seed=seed), sign_flip_p(gaps, seed=seed)
        p_better = p / 2 if better.mean() > 0 else 1 - p / 2
    low, high = (float(end) if np.isfinite(end) else None for end in interval)
    return Difference(
        metric=metric.name, higher_is_better=metric.higher_is_better, is_ratio=metric.kind == "geometric",
        value=float(gaps.mean()), low=low, high=high, num_pairs=len(shared), gained=gained, lost=lost,
        spread=float((gaps != 0).mean()) if binary else float(gaps.std(ddof=1)) if len(shared) > 1 else 0.0,
        share_worse=len(lost) / len(shared), test="mcnemar" if binary else "permutation", p=p, p_better=p_better,
    )  # fmt: skip


def tango_interval(more: int, fewer: int, count: int, level: float = LEVEL) -> Interval:
    """Score interval of a difference of paired proportions (Tango 1998, Statistics in Medicine 17, equation 4).

    It holds its level from few pairs on and is narrower than a bootstrap, which cannot know of changes that it has not
    seen. Its ends are the differences that a score test would just not reject.

    Args:
        more: pairs that pass with ours alone.
        fewer: pairs that pass with theirs alone.
        count: all pairs, at least 1.
        level: nominal coverage.
    """
    if count < 1 or more < 0 or fewer < 0 or more + fewer > count:
        raise ValueError(f"{more} and {fewer} changes need at least as many pairs, got {count}")
    limit = float(norm.ppf((1 + level) / 2))
    observed = (more - fewer) / count

    def score(delta: float) -> float:
        # The likeliest share of pairs that pass with theirs alone, if the difference is delta: root of a quadratic.
        linear = -more - fewer + (2 * count - more + fewer) * delta
        share = (np.sqrt(linear**2 + 8 * count * fewer * delta * (1 - delta)) - linear) / (4 * count)
        variance = count * (2 * share + delta * (1 - delta))
        return (more - fewer - count * delta) / np.sqrt(max(variance, 1e-300))

    edge = 1 - 1e-12
    low = brentq(lambda delta: score(delta) - limit, -edge, observed) if observed > -edge else -1.0
    high = brentq(lambda delta: score(delta) + limit, observed, edge) if observed < edge else 1.0
    return Interval(float(np.asarray(low)), float(np.asarray(high)))


def mcnemar_p(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: are gains and losses equally likely? 1 if nothing changed."""
    return min(1.0, 2 * float(binom.cdf(min(gained, lost), gained + lost, 0.5)))


def sign_flip_p(differences: Sequence[float] | np.ndarray, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided paired permutation test of a mean difference of 0.

    Swapping the two methods on an example flips the sign of its difference. Up to 13 non-zero differences all swaps are
    enumerated; beyond that, ``draws`` random ones (ten times as many where p is below 0.01, so that Holm's correction
    does not meet a floor), counting the observed one among them so that p is never 0. From 2,000 differences on, if
    none outweighs the others, swaps add up to a normal distribution of known variance, which is taken instead.
    """
    gaps = np.asarray(differences, dtype=float)
    gaps = gaps[gaps != 0]
    if gaps.size == 0:
        return 1.0
    threshold = abs(gaps.sum()) * (1 - 1e-12)

    if gaps.size <= _EXACT_UP_TO:
        codes = np.arange(2**gaps.size)[:, None] >> np.arange(gaps.size) & 1
        return float((np.abs((2 * codes - 1) @ gaps) >= threshold).mean())

    squares = gaps**2
    if gaps.size >= _NORMAL_FROM and squares.max() <= _LARGEST_SHARE * squares.sum():
        return float(2 * norm.sf(threshold / np.sqrt(squares.sum())))

    # A small p-value rests on few extreme flips, so it gets ten times as many draws.
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


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction over all given tests, in their order.

    statsmodels has it too, but collects garbage at every call, which a simulation of thousands cannot pay.
    """
    given = np.asarray(p_values, dtype=float)
    order = np.argsort(given, kind="stable")
    stepped = np.maximum.accumulate(given[order] * np.arange(given.size, 0, -1))
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()
