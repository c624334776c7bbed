"""Paired differences against hand-worked values, statsmodels and scipy."""

import math

import numpy as np
import pytest
from scipy import stats
from simulate import LEAST_COVERAGE, agreements, false_positives, pass_fail_coverage
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from harness.report.paired import holm, mcnemar_p, paired_difference, sign_flip_p, tango_interval
from harness.scoring import Metric

CORRECT = Metric("correct", True, 0.0, 1.0, "proportion")
PERPLEXITY = Metric("perplexity", False, 1.0, math.inf)


def test_published_flips_give_the_published_p() -> None:
    assert mcnemar_p(32, 8) == pytest.approx(0.0002, abs=5e-5)


@pytest.mark.parametrize(("gained", "lost"), [(32, 8), (5, 0), (3, 3), (0, 1), (17, 29)])
def test_mcnemar_is_statsmodels(gained: int, lost: int) -> None:
    theirs = mcnemar([[0, gained], [lost, 0]], exact=True).pvalue
    assert mcnemar_p(gained, lost) == pytest.approx(theirs, abs=1e-12)


def test_six_gains_without_loss_are_needed() -> None:
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(5, 0) > 0.05 > mcnemar_p(6, 0)


def test_few_differences_are_enumerated() -> None:
    """Of the 8 ways to swap +1, +2, +3, two (all up, all down) are as far out as what was seen."""
    assert sign_flip_p([1.0, 2.0, 3.0, 0.0, 0.0]) == 2 / 8
    assert sign_flip_p([0.0, 0.0]) == 1.0


def test_enumeration_and_draws_agree_with_scipy() -> None:
    gaps = np.random.default_rng(0).normal(0.25, 1.0, size=60)
    theirs = stats.permutation_test(
        (gaps,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    ).pvalue
    assert sign_flip_p(gaps) == pytest.approx(theirs, abs=0.01)


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.08])
def test_many_differences_take_the_normal_distribution_that_draws_would_give(
    shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps = np.random.default_rng(1).normal(shift, 1.0, size=2_500)
    normal = sign_flip_p(gaps)
    monkeypatch.setattr("harness.report.paired._NORMAL_FROM", 10_000)
    assert normal == pytest.approx(sign_flip_p(gaps), abs=0.015)


def test_chunks_do_not_change_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by drawing swaps in chunks; the stream of random numbers goes on over their ends."""
    gaps = np.random.default_rng(3).choice([-0.5, -0.25, 0.25, 0.5], size=60)
    whole = sign_flip_p(gaps)
    monkeypatch.setattr("harness.report.paired._CHUNK", 1_000)
    assert 0.2 < whole < 0.8
    assert sign_flip_p(gaps) == pytest.approx(whole, abs=1e-12)


def test_one_difference_that_outweighs_all_others_is_drawn() -> None:
    """The sign of the large one decides, so half of all swaps are as far out; a normal distribution would say 0.32."""
    gaps = np.concatenate([[1.0], np.full(1_500, 1e-6), np.full(1_500, -1e-6)])
    assert sign_flip_p(gaps) == pytest.approx(0.5, abs=0.03)


def test_a_tiny_p_is_resolved_but_never_zero() -> None:
    p = sign_flip_p(np.full(40, 0.3) + np.random.default_rng(0).normal(0, 0.01, 40))
    assert 0 < p < 1 / 10_000


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.5, 0.001, 0.4]) == [pytest.approx(0.8), pytest.approx(0.003), pytest.approx(0.8)]
    assert holm([0.9, 0.6]) == [1.0, 1.0]


def test_holm_is_statsmodels() -> None:
    for p_values in np.random.default_rng(0).random((20, 7)) ** 3:
        assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([]) == []


def test_gains_and_losses_follow_the_metrics_direction() -> None:
    ours, theirs = {"a": 5.0, "b": 20.0, "c": 7.0, "only": 1.0}, {"a": 9.0, "b": 10.0, "c": 7.0, "other": 1.0}
    difference = paired_difference(PERPLEXITY, ours, theirs)
    assert difference is not None
    assert (difference.gained, difference.lost, difference.num_pairs) == (("a",), ("b",), 3)
    assert difference.value == pytest.approx(2.0)
    assert difference.share_worse == pytest.approx(1 / 3)
    assert difference.test == "permutation"


def test_pass_or_fail_is_tested_by_mcnemar() -> None:
    ours = {str(index): 1.0 for index in range(8)} | {"x": 0.0}
    theirs = dict.fromkeys(ours, 0.0) | {"x": 1.0}
    difference = paired_difference(CORRECT, ours, theirs)
    assert difference is not None
    assert (difference.test, difference.p) == ("mcnemar", mcnemar_p(8, 1))


def test_one_sided_p_values_are_halves_that_add_up_around_the_middle() -> None:
    """Three gains in three changes: 1 in 8 by luck, whichever side is asked about."""
    ours = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0}
    theirs = dict.fromkeys(ours, 0.0)
    up, down = paired_difference(CORRECT, ours, theirs), paired_difference(CORRECT, theirs, ours)
    assert up is not None
    assert down is not None
    assert (up.p, up.p_better, down.p_better) == (pytest.approx(0.25), pytest.approx(0.125), 1.0)


def test_the_gain_of_a_metric_to_be_lowered_is_turned() -> None:
    theirs = {str(index): 20.0 + index for index in range(30)}
    ours = {name: value - 2 - int(name) % 3 for name, value in theirs.items()}
    difference = paired_difference(PERPLEXITY, ours, theirs)
    assert difference is not None
    assert difference.low is not None
    assert difference.high is not None
    assert difference.value == -difference.gain[0] == pytest.approx(-3.0)
    assert difference.gain[1:] == (-difference.high, -difference.low)


@pytest.mark.parametrize(("more", "fewer", "count"), [(0, 0, 20), (3, 1, 14), (9, 5, 44), (20, 0, 20), (1, 0, 30)])
def test_tangos_ends_are_where_the_score_test_just_does_not_reject(more: int, fewer: int, count: int) -> None:
    """The nuisance share is found by maximising the likelihood on a grid, not by the formula under test."""
    for end in tango_interval(more, fewer, count):
        if abs(end) == 1:
            continue
        shares = np.linspace(max(0, -end), (1 - end) / 2, 200_001)[1:-1]
        chances = np.array([shares + end, shares, 1 - 2 * shares - end])
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.where(np.array([[more], [fewer], [count - more - fewer]]) == 0, 0, np.log(chances))
            likelihood = np.array([more, fewer, count - more - fewer]) @ logs
        share = shares[np.argmax(likelihood)]
        z = (more - fewer - count * end) / math.sqrt(count * (2 * share + end - end**2))
        assert abs(z) == pytest.approx(stats.norm.ppf(0.975), abs=2e-3)


def test_tango_without_any_change_is_as_wide_as_the_score_interval_of_a_share_of_zero() -> None:
    """Nothing changed in 20 pairs: z²/(n + z²) on either side, as Wilson's end for 0 of 20."""
    limit = 3.841459 / (20 + 3.841459)
    assert tango_interval(0, 0, 20) == pytest.approx((-limit, limit), abs=1e-5)


def test_pass_fail_differences_cover() -> None:
    assert min(item.coverage for item in pass_fail_coverage(counts=(20, 50))) >= LEAST_COVERAGE


@pytest.mark.parametrize(("more", "fewer", "count"), [(3, 2, 4), (-1, 0, 3), (0, 0, 0)])
def test_impossible_changes_are_refused(more: int, fewer: int, count: int) -> None:
    with pytest.raises(ValueError, match="need at least as many pairs"):
        tango_interval(more, fewer, count)


def test_averages_over_seeds_are_not_tested_by_mcnemar() -> None:
    difference = paired_difference(CORRECT, {"a": 0.5, "b": 1.0}, {"a": 0.0, "b": 1.0})
    assert difference is not None
    assert difference.test == "permutation"


def test_nothing_in_common_is_no_difference() -> None:
    assert paired_difference(CORRECT, {"a": 1.0}, {"b": 1.0}) is None


def test_independent_implementations_agree() -> None:
    for agreement in agreements(3):
        assert agreement.largest <= agreement.allowed, agreement


def test_the_whole_procedure_rarely_cries_wolf() -> None:
    """5 % of 20 comparisons is 1; 5 or more would come up once in 400 times at exactly 5 %."""
    assert false_positives(20, count=30) * 20 < 5
