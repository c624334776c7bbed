"""Paired differences against hand-worked values, statsmodels and scipy."""

import math

import numpy as np
import pytest
from scipy import stats
from simulate import agreements, false_positives
from statsmodels.stats.contingency_tables import mcnemar

from harness.report.paired import detectable_effect, holm, mcnemar_p, mcnemar_power, paired_difference, sign_flip_p
from harness.types import Metric

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


def test_a_tiny_p_is_resolved_but_never_zero() -> None:
    p = sign_flip_p(np.full(40, 0.3) + np.random.default_rng(0).normal(0, 0.01, 40))
    assert 0 < p < 1 / 10_000


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.5, 0.001, 0.4]) == [pytest.approx(0.8), pytest.approx(0.003), pytest.approx(0.8)]
    assert holm([0.9, 0.6]) == [1.0, 1.0]


def test_holm_leaves_what_was_not_tested() -> None:
    assert holm([]) == []
    assert holm([None, None]) == [None, None]
    assert holm([None, 0.2]) == [None, pytest.approx(0.2)]


def test_gains_and_losses_follow_the_metrics_direction() -> None:
    ours, theirs = {"a": 5.0, "b": 20.0, "c": 7.0, "only": 1.0}, {"a": 9.0, "b": 10.0, "c": 7.0, "other": 1.0}
    found = paired_difference(PERPLEXITY, ours, theirs)
    assert found is not None
    assert (found.gained, found.lost, found.num_pairs) == (("a",), ("b",), 3)
    assert found.value == pytest.approx(2.0)
    assert found.share_worse == pytest.approx(1 / 3)
    assert found.test == "permutation"


def test_pass_or_fail_is_tested_by_mcnemar() -> None:
    ours = {str(index): 1.0 for index in range(8)} | {"x": 0.0}
    theirs = dict.fromkeys(ours, 0.0) | {"x": 1.0}
    found = paired_difference(CORRECT, ours, theirs)
    assert found is not None
    assert (found.test, found.p) == ("mcnemar", mcnemar_p(8, 1))


def test_averages_over_seeds_are_not_tested_by_mcnemar() -> None:
    found = paired_difference(CORRECT, {"a": 0.5, "b": 1.0}, {"a": 0.0, "b": 1.0})
    assert found is not None
    assert found.test == "permutation"


def test_nothing_in_common_is_no_difference() -> None:
    assert paired_difference(CORRECT, {"a": 1.0}, {"b": 1.0}) is None


def test_detectable_pass_rate_is_found_four_times_in_five() -> None:
    gaps = np.array([1.0] * 30 + [-1.0] * 12 + [0.0] * 108)
    effect = detectable_effect(gaps, binary=True)
    assert effect is not None
    changed, rng = 42 / 150, np.random.default_rng(0)
    drawn = rng.multinomial(150, [(changed + effect) / 2, (changed - effect) / 2, 1 - changed], size=2000)
    assert np.mean([mcnemar_p(int(up), int(down)) <= 0.05 for up, down, _ in drawn]) == pytest.approx(0.8, abs=0.03)


def test_power_under_no_effect_is_at_most_alpha() -> None:
    assert mcnemar_power(200, changed=0.3, effect=0.0) <= 0.05


def test_detectable_mean_by_the_textbook() -> None:
    gaps = np.random.default_rng(0).normal(0, 2.0, size=100)
    wanted = (1.959964 + 0.841621) * gaps.std(ddof=1) / 10
    assert detectable_effect(gaps, binary=False) == pytest.approx(wanted, rel=1e-5)
    assert detectable_effect([0.3, 0.3], binary=False) is None
    assert detectable_effect([1.0, 0.0, 0.0], binary=True) is None


def test_stricter_levels_detect_less() -> None:
    gaps = np.array([1.0] * 20 + [0.0] * 80)
    assert detectable_effect(gaps, binary=True, alpha=0.001) > detectable_effect(gaps, binary=True)


def test_independent_implementations_agree() -> None:
    for found in agreements(3):
        assert found.largest <= found.allowed, found


def test_the_whole_procedure_rarely_cries_wolf() -> None:
    """5 % of 20 comparisons is 1; 5 or more would come up once in 400 times at exactly 5 %."""
    assert false_positives(20, count=30) * 20 < 5
