"""How much a number of examples can show, against simulation and the textbook."""

import numpy as np
import pytest

from harness.report.paired import mcnemar_p
from harness.report.power import MOST, detectable_effect, fewest_pairs, mcnemar_power, units_needed


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
    textbook = (1.959964 + 0.841621) * gaps.std(ddof=1) / 10
    assert detectable_effect(gaps, binary=False) == pytest.approx(textbook, rel=1e-5)
    assert detectable_effect([0.3, 0.3], binary=False) is None
    assert detectable_effect([1.0, 0.0, 0.0], binary=True) is None


def test_stricter_levels_detect_less() -> None:
    gaps = np.array([1.0] * 20 + [0.0] * 80)
    assert detectable_effect(gaps, binary=True, alpha=0.001) > detectable_effect(gaps, binary=True)


@pytest.mark.parametrize(("effect", "changed"), [(0.10, 0.20), (0.05, 0.08), (0.3, 0.3)])
def test_so_many_pairs_find_the_difference_four_times_in_five(effect: float, changed: float) -> None:
    count = units_needed(effect, changed, binary=True)
    assert count is not None
    assert mcnemar_power(count, changed, effect) >= 0.8
    assert mcnemar_power(round(0.85 * count), changed, effect) < 0.8, "that many were not needed"


def test_too_few_pairs_find_nothing_however_large() -> None:
    """All signs alike happen by chance in 2 of 2^5 cases, which is more than one in twenty; 2 of 2^6 is less."""
    assert fewest_pairs(0.05) == 6
    assert units_needed(5.0, 0.1, binary=False) == 6
    assert units_needed(5.0, 0.1, binary=False, alpha=0.0125) == 8
    assert detectable_effect([0.1, 0.2, 0.3, 0.2, 0.1], binary=False) is None
    assert detectable_effect([0.1, 0.2, 0.3, 0.2, 0.1, 0.2], binary=False) is not None


def test_pairs_needed_for_a_mean_by_the_textbook() -> None:
    """(1.96 + 0.84)² / 0.5² = 31.4, rounded up to two digits."""
    assert units_needed(0.5, 1.0, binary=False) == 32
    assert units_needed(-0.5, 1.0, binary=False) == 32


@pytest.mark.parametrize(("effect", "spread"), [(0.0, 1.0), (0.1, 0.0), (1e-4, 1.0)])
def test_what_no_number_of_pairs_settles_has_none(effect: float, spread: float) -> None:
    assert units_needed(effect, spread, binary=False) is None
    assert MOST < (2.8 / 1e-4) ** 2
