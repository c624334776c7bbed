"""`python tests/report/simulate.py`: do the intervals cover, does the procedure cry wolf, what does it find?

Everything is drawn from distributions with a known answer, over a stated grid. Exit status 1 if a promise is broken:
an interval that covers under 93 %, a claim that is false more often than 5 % of the time, power below what is stated,
or a figure that an independent implementation does not give.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar

from harness.data import Example
from harness.records.rows import Selected
from harness.records.run import EvaluatorNote, Labels, MetricNote, RunRecord
from harness.records.stored import StoredRun
from harness.report.claims import Claim, claims_of, corrected, tested_pairs
from harness.report.contrasts import Contrast, planned_contrasts
from harness.report.entries import Entry
from harness.report.paired import mcnemar_p, paired_difference, sign_flip_p, tango_interval
from harness.scoring import Generation, Metric, Record
from harness.statistics import DRAWS, mean_interval, wilson_interval

COUNTS = (20, 50, 150, 500)
SHARES = (0.02, 0.05, 0.1, 0.3, 0.6)
FINE_SHARES = tuple(np.concatenate([np.linspace(0.0005, 0.05, 100), np.linspace(0.05, 0.95, 181)]).tolist())
LEAST_COVERAGE = 0.93
WORST_SHARE = 0.92
"""Of a proportion, at the worst of 281 true shares: its coverage is a saw-tooth, as counts are whole numbers."""
CHANGES = ((0.2, 0.2), (0.15, 0.05), (0.05, 0.05), (0.1, 0.02), (0.02, 0.0))
"""Shares of pairs that gain and that lose."""
OVERLAPS = np.array([0.25, 1 / 3, 0.5, 1.0])
"""What an overlap with a gold answer of two to four words usually is, where it is not 0."""
OVERLAP_WEIGHTS = np.array([0.2, 0.2, 0.3, 0.3])

CORRECT = Metric("correct", True, 0.0, 1.0, "proportion")
LOG_ODDS = Metric("logit_difference", True, -np.inf, np.inf)
PERPLEXITY = Metric("perplexity", False, 1.0, np.inf, "geometric")
METRICS = {metric.name: metric for metric in (CORRECT, LOG_ODDS, PERPLEXITY)}


class Coverage(NamedTuple):
    """How often an interval held the true value."""

    what: str
    count: int
    case: str
    coverage: float


def proportion_coverage(counts: Sequence[int] = COUNTS, shares: Sequence[float] = FINE_SHARES) -> list[Coverage]:
    """Exact coverage of `wilson_interval`, summed over the binomial distribution; the worst share for every n."""
    coverages = []
    for count in counts:
        passes = np.arange(count + 1)
        lows, highs = np.array([wilson_interval(int(k), count) for k in passes]).T
        held = [float(stats.binom.pmf(passes, count, p)[(lows <= p) & (p <= highs)].sum()) for p in shares]
        worst = int(np.argmin(held))
        coverages.append(Coverage("proportion, worst p", count, f"{shares[worst]:.3g}", held[worst]))
    return coverages


def pass_fail_coverage(
    counts: Sequence[int] = (20, 50, 150), changes: Sequence[tuple[float, float]] = CHANGES
) -> list[Coverage]:
    """Exact coverage of `tango_interval`, summed over the trinomial distribution of gains and losses."""
    coverages = []
    for count in counts:
        ups, downs = np.array([(up, down) for up in range(count + 1) for down in range(count + 1 - up)]).T
        for gain, loss in changes:
            chances = stats.multinomial.pmf(
                np.stack([ups, downs, count - ups - downs], 1), count, [gain, loss, 1 - gain - loss]
            )
            likely = chances > 1e-9
            ends = np.array(
                [tango_interval(int(up), int(down), count) for up, down in zip(ups[likely], downs[likely], strict=True)]
            )
            held = (ends[:, 0] <= gain - loss + 1e-12) & (gain - loss <= ends[:, 1] + 1e-12)
            coverages.append(
                Coverage("pass/fail, paired", count, f"+{gain:g}/−{loss:g}", float(chances[likely][held].sum()))
            )
    return coverages


def _overlaps(rng: np.random.Generator, count: int, share: float) -> np.ndarray:
    return np.where(rng.random(count) < share, rng.choice(OVERLAPS, count, p=OVERLAP_WEIGHTS), 0.0)


def _overlap_gaps(rng: np.random.Generator, count: int, share: float) -> np.ndarray:
    """Differences of two methods of which the second keeps most of what the first one has and gains a little."""
    first, fresh = _overlaps(rng, count, share), _overlaps(rng, count, 1.5 * share)
    return np.where(rng.random(count) < 0.5, fresh - first, 0.0)


def _simulated(
    what: str, count: int, case: str, truth: float, draw: Callable[[np.random.Generator], Any], repeats: int
) -> Coverage:
    """Share of data sets whose interval holds the truth; ``draw`` gives the ends of one."""
    rng = np.random.default_rng([count, len(case), round(1000 * abs(truth))])
    ends = [draw(rng) for _ in range(repeats)]
    held = np.mean([low - 1e-12 <= truth <= high + 1e-12 for low, high in ends])
    return Coverage(what, count, case, float(held))


def sparse_coverage(
    repeats: int, counts: Sequence[int] = COUNTS, shares: Sequence[float] = SHARES, draws: int = DRAWS
) -> list[Coverage]:
    """Coverage of `mean_interval` on sparse overlaps and on their paired differences."""
    mean = float(OVERLAPS @ OVERLAP_WEIGHTS)
    cases: list[tuple[str, Callable[..., np.ndarray], float, float]] = [
        ("sparse overlap", _overlaps, mean, 0.0),
        ("sparse overlap, paired", _overlap_gaps, 0.25 * mean, -1.0),
    ]

    def of_cell(case: tuple[str, Callable[..., np.ndarray], float, float], count: int, share: float) -> Coverage:
        what, draw, slope, low = case

        def interval(rng: np.random.Generator) -> Any:
            return mean_interval(draw(rng, count, share), (low, 1.0), draws=draws)

        return _simulated(what, count, f"{share:g}", slope * share, interval, repeats)

    return [of_cell(*cell) for cell in itertools.product(cases, counts, shares)]


def _with_broken(rng: np.random.Generator, count: int, share: float = 0.05) -> np.ndarray:
    """Nats per token around perplexity 10, some texts broken at 1,000."""
    return rng.normal(2.3, 0.6, count) + 4.6 * (rng.random(count) < share)


HEAVY: Mapping[str, tuple[Callable[..., np.ndarray], float, int]] = {
    "log-normal perplexities, sigma 1.5": (lambda rng, n: rng.normal(3.0, 1.5, n), 3.0, 20),
    "Pareto perplexities, 1.8": (lambda rng, n: rng.exponential(1 / 1.8, n), 1 / 1.8, 20),
    "5 % broken texts": (_with_broken, 2.3 + 0.05 * 4.6, 150),
    "5 % broken texts, paired": (lambda rng, n: _with_broken(rng, n) - rng.normal(2.3, 0.6, n), 0.05 * 4.6, 50),
    "t with 3 degrees of freedom": (lambda rng, n: rng.standard_t(3, n), 0.0, 20),
    "t with 2.5 degrees of freedom": (lambda rng, n: rng.standard_t(2.5, n), 0.0, 20),
}
"""Scores with heavy tails on the scale on which they are averaged, their true mean, and from how many on the interval
covers: whoever sees none of the broken texts cannot know that there are some."""


def heavy_coverage(repeats: int, counts: Sequence[int] = COUNTS, draws: int = DRAWS) -> list[Coverage]:
    """Coverage of `mean_interval` on scores with heavy tails."""
    return [
        _simulated(
            "heavy tails", count, case, mean,
            lambda rng, f=draw, n=count: mean_interval(f(rng, n), draws=draws), repeats,
        )
        for case, (draw, mean, least) in HEAVY.items() for count in counts if count >= least
    ]  # fmt: skip


def _both_orders(rng: np.random.Generator, questions: int, content: float, letters: float) -> np.ndarray:
    """Log-odds of questions asked in both orders, of shape (questions, 2).

    What the content adds is the same in both orders, what the letter adds is the opposite.
    """
    own = content * rng.normal(size=(questions, 1))
    letter = letters * rng.normal(size=(questions, 1)) * np.array([1.0, -1.0])
    return own + letter + 0.3 * rng.normal(size=(questions, 2))


ORDERS = {"content decides": (1.0, 0.1), "letters decide": (0.1, 1.0), "both decide": (0.7, 0.7)}


def cluster_coverage(repeats: int, counts: Sequence[int] = (28, 50, 150), draws: int = DRAWS) -> list[Coverage]:
    """Coverage of paired differences of questions that are asked in both orders, taken by question.

    The second method adds 0.2 nats to every item.
    """
    coverages = []
    for case, (content, letters) in ORDERS.items():
        spread = np.sqrt(content**2 + letters**2 + 3 * 0.3**2)
        share = float(stats.norm.cdf(0.2 / spread)) - 0.5
        for metric, truth in ((LOG_ODDS, 0.2), (CORRECT, share)):
            for count in counts:

                def ends(
                    rng: np.random.Generator, n: int = count, m: Metric = metric, how: Any = (content, letters)
                ) -> Any:
                    plain = _both_orders(rng, n, *how)
                    moved = plain + 0.2 + 0.3 * rng.normal(size=plain.shape) - 0.3 * rng.normal(size=plain.shape)
                    return _difference_by_question(m, moved, plain, draws)

                coverages.append(_simulated(f"{metric.name}, both orders", count, case, truth, ends, repeats))
    return coverages


def _difference_by_question(metric: Metric, ours: np.ndarray, theirs: np.ndarray, draws: int) -> tuple[float, float]:
    sides = ((ours > 0).astype(float), (theirs > 0).astype(float)) if metric is CORRECT else (ours, theirs)
    means = [{str(index): float(value) for index, value in enumerate(side.mean(1))} for side in sides]
    difference = paired_difference(metric, *means, draws=draws)
    assert difference is not None
    assert difference.low is not None
    assert difference.high is not None
    return difference.low, difference.high


# ---- the whole procedure -------------------------------------------------------------------------------------------


def entry_of(
    method: str, control: str, columns: Mapping[str, Sequence[float] | np.ndarray], clusters: Sequence[str] = ()
) -> Entry:
    """An entry of a comparison, from one score per item."""
    size = len(next(iter(columns.values())))
    items = [Example(str(i), "?", cluster=clusters[i] if clusters else "") for i in range(size)]
    selected = {item.id: Selected(Record(item, Generation(item.id, {}, "", (), "stop"), ""), 0) for item in items}
    note = EvaluatorNote.model_construct(
        version=1,
        judged=False,
        metrics=tuple(MetricNote.model_construct(**vars(METRICS[name])) for name in columns),
    )
    record = RunRecord(
        key=method, entry=f"{method} {control}", name=f"{method} {control}", created="", status="done", config={},
        labels=Labels(method=method, control=control, search="fixed"), oracle=method in ("full_layer", "segmented"),
        evaluators={"any": note},
    )  # fmt: skip
    scores = {
        name: {item.id: float(v) for item, v in zip(items, values, strict=True)} for name, values in columns.items()
    }
    name = method if control == "none" else f"{method} · {control}"
    return Entry(name, (StoredRun(Path(method), record, scores, selected),), {})


def false_positives(repeats: int, count: int = 60) -> float:
    """Share of whole comparisons with any finding, where no method does anything.

    Baseline, two deployable methods, two oracles with three controls each; outcomes depend on the example's difficulty
    and on luck. Claims and pairs of methods are tested as in a real comparison.
    """
    findings = 0
    for repeat in range(repeats):
        rng = np.random.default_rng([repeat, count])
        difficulty = rng.normal(size=count)
        controls = ("none", "shuffled", "random", "best_of_n")
        plan = [("baseline", "none"), ("prompting", "none"), ("caa", "none")]
        plan += [(method, control) for method in ("full_layer", "segmented") for control in controls]
        entries = [
            entry_of(*names, {"correct": 0.7 * difficulty + 0.7 * rng.normal(size=count) > 0.8}) for names in plan
        ]
        findings += _any_finding(entries, "correct")
    return findings / repeats


def _any_finding(entries: Sequence[Entry], metric: str) -> bool:
    contrasts = planned_contrasts(entries, {metric: METRICS[metric]}, draws=100)
    claims = claims_of(entries, contrasts, metric)
    pairs = tested_pairs(contrasts, claims, metric, "auto")
    settled = any(claim.verdict in ("better", "worse") for claim in claims)
    return settled or any(pair.p_holm is not None and pair.p_holm <= 0.05 for pair in pairs)


def clustered_false_positives(repeats: int, questions: int = 28, *, by_question: bool = True) -> float:
    """Share of comparisons in which a method that does nothing is found to do something, items in both orders.

    Content decides, so the two orders of a question say the same thing twice: by item, too much is found.
    """
    findings = 0
    for repeat in range(repeats):
        rng = np.random.default_rng([repeat, questions])
        clusters = [f"q{index // 2}" for index in range(2 * questions)] if by_question else ()
        plain = _both_orders(rng, questions, 1.0, 0.1)
        moved = plain + 0.8 * rng.normal(size=(questions, 1))
        sides = [("baseline", plain), ("caa", moved)]
        entries = [entry_of(name, "none", {"correct": side.ravel() > 0}, clusters) for name, side in sides]
        findings += _any_finding(entries, "correct")
    return findings / repeats


class Scenario(NamedTuple):
    """Methods with their controls, and what is true of them.

    Args:
        methods: true share correct of each method; the un-steered model's is 0.30.
        controls: how many controls each has.
        control_share: their true share correct.
        changed: share of questions on which a method of share 0.40 differs from the un-steered model.
    """

    methods: tuple[float, ...]
    controls: int = 0
    control_share: float = 0.30
    changed: float = 0.20


GOOD, NULL = 0.40, 0.30
POWERS: Mapping[str, tuple[Scenario, float]] = {
    "2 methods, 1 good": (Scenario((GOOD, NULL)), 0.62),
    "5 methods, 1 good": (Scenario((GOOD, *[NULL] * 4)), 0.48),
    "5 methods, all good": (Scenario((GOOD,) * 5), 0.54),
    "5 methods x 2 controls, 1 good": (Scenario((GOOD, *[NULL] * 4), 2), 0.23),
    "5 methods x 2 controls, 1 good, 14 % changed": (Scenario((GOOD, *[NULL] * 4), 2, changed=0.14), 0.48),
    "5 methods x 2 controls, all good, 14 % changed": (Scenario((GOOD,) * 5, 2, changed=0.14), 0.58),
}
"""What is true, and the least power with which 150 questions must find that the first method is better."""
ERRORS: Mapping[str, tuple[Scenario, float]] = {
    "nothing works, 5 methods": (Scenario((NULL,) * 5), 0.05),
    "nothing works, 5 methods x 2 controls": (Scenario((NULL,) * 5, 2), 0.015),
    "all beat the baseline, none its control, 5 x 1": (Scenario((GOOD,) * 5, 1, GOOD), 0.015),
    "all beat the baseline, none its controls, 5 x 2": (Scenario((GOOD,) * 5, 2, GOOD), 0.015),
}
"""What is true, and how often at most any false claim may be made."""


def verdicts(scenario: Scenario, repeats: int, count: int = 150) -> np.ndarray:
    """Whether each method is found to be better; of shape (repeats, methods)."""
    rng = np.random.default_rng([len(scenario.methods), scenario.controls, round(100 * scenario.changed)])
    shared = _shared_luck(scenario.changed)
    rates = []
    for _ in range(repeats):
        difficulty = np.sqrt(shared) * rng.normal(size=count)

        def outcomes(share: float, difficulty: np.ndarray = difficulty) -> dict[str, float]:
            luck = difficulty + np.sqrt(1 - shared) * rng.normal(size=count)
            return {str(index): float(hit) for index, hit in enumerate(luck < stats.norm.ppf(share))}

        baseline = outcomes(NULL)
        claims = [
            _claim(
                f"m{index}",
                outcomes(share),
                [baseline, *(outcomes(scenario.control_share) for _ in range(scenario.controls))],
            )
            for index, share in enumerate(scenario.methods)
        ]
        rates.append([claim.verdict == "better" for claim in corrected(claims)])
    return np.array(rates)


def _claim(method: str, ours: Mapping[str, float], opponents: Sequence[Mapping[str, float]]) -> Claim:
    contrasts = []
    for index, theirs in enumerate(opponents):
        difference = paired_difference(CORRECT, ours, theirs)
        assert difference is not None
        contrasts.append(Contrast("control" if index else "baseline", method, str(index), difference))
    return Claim(method, False, tuple(contrasts))


def _shared_luck(changed: float) -> float:
    """Correlation of two outcomes that differ on this share of questions, where 0.30 and 0.40 of them pass."""
    limits = stats.norm.ppf([NULL, GOOD])

    def gap(shared: float) -> float:
        both = stats.multivariate_normal([0, 0], [[1, shared], [shared, 1]]).cdf(limits)
        return NULL + GOOD - 2 * float(both) - changed

    return float(np.asarray(optimize.brentq(gap, 0.0, 0.999)))


# ---- other implementations -----------------------------------------------------------------------------------------


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
    scores = [_score_at_ends(up, down, 100) for up, down in flips.tolist()]

    return [
        Agreement("exact McNemar and statsmodels', p", max(test), 1e-9),
        Agreement("sign flips and scipy's permutation_test, p", max(swaps), 0.02),
        Agreement("interval of a mean and scipy's BCa on smooth data, standard errors", max(ends), 0.15),
        Agreement("Tango's ends and a score test with scipy's constrained likelihood, z", max(scores), 1e-3),
    ]


def _statsmodels_mcnemar(gained: int, lost: int) -> float:
    exact: Any = mcnemar([[0, gained], [lost, 0]], exact=True)
    return float(exact.pvalue)


def _scipy_permutation(gaps: np.ndarray, rng: np.random.Generator) -> float:
    options = {"permutation_type": "samples", "n_resamples": DRAWS, "rng": rng}
    permuted: Any = stats.permutation_test((gaps,), lambda x, axis: np.mean(x, axis=axis), vectorized=True, **options)
    return float(permuted.pvalue)


def _distance_to_scipy(data: np.ndarray, rng: np.random.Generator) -> float:
    ours = np.array(mean_interval(data))
    theirs = np.array(stats.bootstrap((data,), np.mean, n_resamples=DRAWS, method="BCa", rng=rng).confidence_interval)
    return float(np.abs(ours - theirs).max() / (data.std(ddof=1) / np.sqrt(data.size)))


def _score_at_ends(more: int, fewer: int, count: int) -> float:
    """How far the score statistic at the ends is from 1.96, the nuisance share found by maximising the likelihood."""
    distances = []
    for delta in tango_interval(more, fewer, count):

        def unlikelihood(share: float, delta: float = delta) -> float:
            chances = np.clip([share + delta, share, 1 - 2 * share - delta], 1e-12, 1)
            return -float(np.array([more, fewer, count - more - fewer]) @ np.log(chances))

        bounds = (max(0.0, -delta), (1 - delta) / 2)
        share = optimize.minimize_scalar(unlikelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        z = (more - fewer - count * delta) / np.sqrt(count * (2 * share + delta - delta**2))
        distances.append(abs(abs(z) - stats.norm.ppf(0.975)))
    return max(distances)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks and print them; 1 if a promise is broken."""
    parser = argparse.ArgumentParser(prog="python tests/report/simulate.py", description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000, help="data sets per cell of the grid and per scenario")
    parser.add_argument("--comparisons", type=int, default=400, help="whole comparisons under the null")
    options = parser.parse_args(arguments)
    console = Console()
    kept = [
        _coverage(console, options.repeats),
        _agreement(console),
        _errors(console, options.repeats, options.comparisons),
        _powers(console, options.repeats),
    ]
    return 0 if all(kept) else 1


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, justify="left" if name in ("what", "case") else "right")
    return table


def _coverage(console: Console, repeats: int) -> bool:
    grid = [
        *pass_fail_coverage(), *sparse_coverage(repeats), *heavy_coverage(repeats), *cluster_coverage(repeats),
        *proportion_coverage(shares=SHARES),
    ]  # fmt: skip
    table = _table("Coverage of the 95 % interval", "what", "n", "case", "coverage")
    for item in grid:
        style = "red" if item.coverage < LEAST_COVERAGE else None
        table.add_row(item.what, str(item.count), item.case, f"{item.coverage:.3f}", style=style)
    console.print(table)
    saw = min(item.coverage for item in proportion_coverage())
    lowest = min(item.coverage for item in grid)
    console.print(f"least coverage on the grid: {lowest:.3f}; of a proportion at the worst of all shares: {saw:.3f}")
    return lowest >= LEAST_COVERAGE and saw >= WORST_SHARE


def _agreement(console: Console) -> bool:
    agreed = agreements()
    for item in agreed:
        console.print(f"{item.what}: differ by at most {item.largest:.2g} (allowed {item.allowed:g})", highlight=False)
    return all(item.largest <= item.allowed for item in agreed)


def _errors(console: Console, repeats: int, comparisons: int) -> bool:
    """False claims; a promise is broken where the interval of the measured share lies above what is allowed."""
    measured = {
        "whole comparisons, nothing works": (false_positives(comparisons), comparisons, 0.05),
        "28 questions in both orders, by question": (clustered_false_positives(repeats), repeats, 0.05),
    }

    for name, (scenario, allowed) in ERRORS.items():
        measured[name] = (float(verdicts(scenario, repeats).any(1).mean()), repeats, allowed)

    table = _table("Comparisons with any false claim", "what", "share", "95 %", "allowed")
    for name, (share, count, allowed) in measured.items():
        low, high = wilson_interval(round(share * count), count)
        table.add_row(name, f"{share:.3f}", f"{low:.3f} to {high:.3f}", f"{allowed:g}")

    by_item = clustered_false_positives(repeats, by_question=False)
    table.add_row("(the same 28 questions, were they tested by item)", f"{by_item:.3f}", "", "")
    console.print(table)
    return all(wilson_interval(round(share * n), n).low <= allowed for share, n, allowed in measured.values())


def _powers(console: Console, repeats: int) -> bool:
    table = _table("Power of 150 questions, +0.10 true", "what", "first method", "all that are good", "at least")
    kept = []
    for name, (scenario, least) in POWERS.items():
        counts = verdicts(scenario, repeats)
        good = np.array(scenario.methods) == GOOD
        first = float(counts[:, 0].mean())
        table.add_row(name, f"{first:.3f}", f"{counts[:, good].mean():.3f}", f"{least:g}")
        kept.append(wilson_interval(round(first * repeats), repeats).high >= least)
    console.print(table)
    return all(kept)


if __name__ == "__main__":
    raise SystemExit(main())
