"""`python tests/report/simulate.py`: do the intervals cover, does the procedure cry wolf, do others agree?

Everything is drawn from distributions with a known answer, over a stated grid. Exit status 1 if a promise is broken:
an interval that covers under 92 %, or more than 5 % false positives under the null.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from harness.records.run import EvaluatorNote, Labels, MetricNote, RunRecord, StoredRun
from harness.report.compare import planned_contrasts
from harness.report.entries import Entry
from harness.report.paired import mcnemar_p, sign_flip_p
from harness.scoring import Metric
from harness.statistics import DRAWS, mean_interval, wilson_interval

COUNTS = (20, 50, 150, 500)
SHARES = (0.02, 0.05, 0.1, 0.3, 0.6)
FINE_SHARES = tuple(np.concatenate([np.linspace(0.0005, 0.05, 100), np.linspace(0.05, 0.95, 181)]).tolist())
LEAST_COVERAGE = 0.92
OVERLAPS = np.array([0.25, 1 / 3, 0.5, 1.0])
"""What an overlap with a gold answer of two to four words usually is, where it is not 0."""
OVERLAP_WEIGHTS = np.array([0.2, 0.2, 0.3, 0.3])


class Coverage(NamedTuple):
    """How often an interval held the true value."""

    what: str
    count: int
    share: float
    coverage: float


def proportion_coverage(counts: Sequence[int] = COUNTS, shares: Sequence[float] = FINE_SHARES) -> list[Coverage]:
    """Exact coverage of `wilson_interval`, summed over the binomial distribution; the worst share for every n."""
    found = []
    for count in counts:
        passes = np.arange(count + 1)
        lows, highs = np.array([wilson_interval(int(k), count) for k in passes]).T
        held = [float(stats.binom.pmf(passes, count, p)[(lows <= p) & (p <= highs)].sum()) for p in shares]
        worst = int(np.argmin(held))
        found.append(Coverage("proportion, worst p", count, shares[worst], held[worst]))
    return found


def _overlaps(rng: np.random.Generator, count: int, share: float) -> np.ndarray:
    return np.where(rng.random(count) < share, rng.choice(OVERLAPS, count, p=OVERLAP_WEIGHTS), 0.0)


def _overlap_gaps(rng: np.random.Generator, count: int, share: float) -> np.ndarray:
    """Differences of two methods of which the second keeps most of what the first one has and gains a little."""
    first, fresh = _overlaps(rng, count, share), _overlaps(rng, count, 1.5 * share)
    return np.where(rng.random(count) < 0.5, fresh - first, 0.0)


def mean_coverage(
    repeats: int, counts: Sequence[int] = COUNTS, shares: Sequence[float] = SHARES, draws: int = DRAWS
) -> list[Coverage]:
    """Simulated coverage of `mean_interval` on sparse overlaps and on their paired differences."""
    mean = float(OVERLAPS @ OVERLAP_WEIGHTS)
    cases: list[tuple[str, Callable[..., np.ndarray], float, tuple[float, float]]] = [
        ("sparse overlap", _overlaps, mean, (0.0, 1.0)),
        ("paired difference", _overlap_gaps, 0.25 * mean, (-1.0, 1.0)),
    ]
    found = []
    for what, draw, slope, bounds in cases:
        for count in counts:
            for share in shares:
                rng = np.random.default_rng([count, int(1000 * share)])
                ends = [mean_interval(draw(rng, count, share), bounds, draws=draws) for _ in range(repeats)]
                held = np.mean([low - 1e-12 <= slope * share <= high + 1e-12 for low, high in ends])
                found.append(Coverage(what, count, share, float(held)))
    return found


_METRICS = {
    "correct": Metric("correct", True, 0.0, 1.0, "proportion"),
    "overlap": Metric("overlap", True, 0.0, 1.0),
    "perplexity": Metric("perplexity", False, 1.0, float("inf")),
}


def false_positives(repeats: int, count: int = 60) -> float:
    """Share of whole comparisons with any finding, where no method does anything.

    Baseline, two deployable methods, two oracles with three controls each; three metrics; outcomes depend on the
    example's difficulty and on luck. All planned pairs are tested and corrected as in a real comparison.
    """
    found = 0
    for repeat in range(repeats):
        entries = _null_entries(np.random.default_rng([repeat, count]), count)
        contrasts = planned_contrasts(entries, _METRICS, tuple(_METRICS), draws=100)
        found += any(contrast.significant for contrast in contrasts)
    return found / repeats


def _null_entries(rng: np.random.Generator, count: int) -> list[Entry]:
    difficulty = rng.normal(size=count)
    methods = [("baseline", "none"), ("prompting", "none"), ("caa", "none")]
    controls = ("none", "shuffled", "random", "best_of_n")
    methods += [(method, control) for method in ("full_layer", "segmented") for control in controls]
    return [_null_entry(method, control, difficulty, rng) for method, control in methods]


def _null_entry(method: str, control: str, difficulty: np.ndarray, rng: np.random.Generator) -> Entry:
    right = 0.7 * difficulty + 0.7 * rng.normal(size=difficulty.size) > 0.8
    partly = rng.random(difficulty.size) < 0.2
    columns = {
        "correct": right.astype(float),
        "overlap": np.where(right, 1.0, np.where(partly, rng.choice(OVERLAPS, difficulty.size), 0.0)),
        "perplexity": np.exp(3 + 0.3 * difficulty + 0.5 * rng.normal(size=difficulty.size)),
    }
    scores = {
        metric: {str(index): float(value) for index, value in enumerate(column)} for metric, column in columns.items()
    }
    oracle = method in ("full_layer", "segmented")
    note = EvaluatorNote.model_construct(
        version=1,
        judged=False,
        metrics=tuple(MetricNote.model_construct(**vars(metric)) for metric in _METRICS.values()),
    )
    record = RunRecord(
        key=method, entry=f"{method} {control}", name=f"{method} {control}", created="", status="done", config={},
        labels=Labels(method=method, control=control, search="fixed"), oracle=oracle, evaluators={"any": note},
    )  # fmt: skip
    return Entry(f"{method} {control}", (StoredRun(Path(method), record, scores, {}),), {})


class Agreement(NamedTuple):
    """Largest difference to an independent implementation."""

    what: str
    largest: float
    allowed: float


def agreements(repeats: int = 20) -> list[Agreement]:
    """Our tests and intervals against statsmodels' and scipy's on the same data."""
    rng = np.random.default_rng(5)
    flips = rng.integers(0, 40, size=(repeats, 2))
    test = [abs(mcnemar_p(a, b) - _statsmodels_mcnemar(a, b)) for a, b in flips.tolist()]
    gaps = [_overlap_gaps(rng, 60, 0.4) for _ in range(repeats)]
    swaps = [abs(sign_flip_p(gap) - _scipy_permutation(gap, rng)) for gap in gaps]
    ends = [_distance_to_scipy(rng.gamma(4.0, size=400), rng) for _ in range(repeats)]
    return [
        Agreement("exact McNemar and statsmodels', p", max(test), 1e-9),
        Agreement("sign flips and scipy's permutation_test, p", max(swaps), 0.02),
        Agreement("bootstrap-t and scipy's BCa on smooth data, standard errors", max(ends), 0.15),
    ]


def _statsmodels_mcnemar(gained: int, lost: int) -> float:
    found: Any = mcnemar([[0, gained], [lost, 0]], exact=True)
    return float(found.pvalue)


def _scipy_permutation(gaps: np.ndarray, rng: np.random.Generator) -> float:
    options = {"permutation_type": "samples", "n_resamples": DRAWS, "rng": rng}
    found: Any = stats.permutation_test((gaps,), lambda x, axis: np.mean(x, axis=axis), vectorized=True, **options)
    return float(found.pvalue)


def _distance_to_scipy(data: np.ndarray, rng: np.random.Generator) -> float:
    ours = np.array(mean_interval(data))
    theirs = np.array(stats.bootstrap((data,), np.mean, n_resamples=DRAWS, method="BCa", rng=rng).confidence_interval)
    return float(np.abs(ours - theirs).max() / (data.std(ddof=1) / np.sqrt(data.size)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks and print them; 1 if a promise is broken."""
    parser = argparse.ArgumentParser(prog="python tests/report/simulate.py", description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000, help="data sets per cell of the grid")
    parser.add_argument("--comparisons", type=int, default=400, help="whole comparisons under the null")
    options = parser.parse_args(arguments)
    console = Console()
    covered = [*proportion_coverage(), *mean_coverage(options.repeats)]
    console.print(_coverage_table(covered))
    agreed = agreements()
    for item in agreed:
        console.print(f"{item.what}: differ by at most {item.largest:.2g} (allowed {item.allowed:g})", highlight=False)
    share = false_positives(options.comparisons)
    low, high = wilson_interval(round(share * options.comparisons), options.comparisons)
    console.print(f"false positives of the whole procedure under the null: {share:.1%} [{low:.1%}, {high:.1%}]")
    kept = min(item.coverage for item in covered) >= LEAST_COVERAGE and low <= 0.05
    return 0 if kept and all(item.largest <= item.allowed for item in agreed) else 1


def _coverage_table(covered: Sequence[Coverage]) -> Table:
    table = Table(title="Coverage of the 95 % interval", title_justify="left")
    for name in ("interval", "n", "p", "coverage"):
        table.add_column(name, justify="left" if name == "interval" else "right")
    for item in covered:
        style = "red" if item.coverage < LEAST_COVERAGE else None
        table.add_row(item.what, str(item.count), f"{item.share:.4g}", f"{item.coverage:.3f}", style=style)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
