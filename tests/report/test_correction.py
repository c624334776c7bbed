"""The correction by a second judge: by hand, at its limits, and its coverage where the first judge is biased."""

from __future__ import annotations

import numpy as np
import pytest

from harness.report.audit import SMALLEST_AUDIT, corrected
from harness.scoring import audited_score


def test_a_part_that_is_everything_gives_the_second_judges_mean() -> None:
    first = [1.0] * 15 + [0.0] * 5
    second = [1.0] * 10 + [0.0] * 10
    correction = corrected(first, second)
    assert correction is not None
    assert correction.value == pytest.approx(0.5)
    assert correction.shift == pytest.approx(0.5 - 0.75)
    assert (correction.num_scored, correction.num_audited) == (20, 20)


def test_by_hand_with_a_judge_that_always_says_yes() -> None:
    """Its scores tell nothing (their covariance with the second's is that of the two invented rows), so little is taken
    from them: the value stays within the invented rows' weight of the second judge's mean."""
    second: list[float | None] = [1.0, 0.0] * 6 + [None] * 28
    correction = corrected([1.0] * 40, second)
    assert correction is not None
    assert correction.value == pytest.approx(0.5), (
        "both judged means are 1, so that the correction is the same for any weight"
    )
    assert correction.shift == pytest.approx(-0.5)


def test_full_agreement_still_leaves_room_for_the_judges_error() -> None:
    first = [1.0, 0.0] * 100
    audited: list[float | None] = [1.0, 0.0] * 30 + [None] * 140
    correction = corrected(first, audited)
    assert correction is not None
    assert correction.value == pytest.approx(0.5)
    plain = 1.96 * (0.25 / 200) ** 0.5
    assert correction.high - correction.value > plain, "wider than sampling error alone"


def test_too_few_audited_scores_and_unequal_lengths() -> None:
    few: list[float | None] = [1.0] * (SMALLEST_AUDIT - 1) + [None] * 50
    assert corrected([1.0] * len(few), few) is None
    with pytest.raises(ValueError, match="2 judged scores and 1 audited ones"):
        corrected([1.0, 0.0], [1.0])


def test_values_stay_within_the_scale_also_for_differences() -> None:
    ones: list[float | None] = [1.0] * 20
    correction = corrected([0.0] * 20, ones)
    assert correction is not None
    assert 0 <= correction.low <= correction.value <= correction.high <= 1
    gap = corrected([-1.0] * 20, [-1.0] * 20, low=-1, high=1)
    assert gap is not None
    assert -1 <= gap.low <= gap.value <= gap.high <= 1


def test_the_score_of_an_audit_is_read_from_the_details() -> None:
    assert audited_score({"audit": {"judge": "x", "score": 1.0, "reason": ""}}) == 1.0
    assert audited_score({"audit": {"judge": "x", "score": None, "reason": "none"}}) is None
    assert audited_score({}) is None


@pytest.mark.parametrize("total", [60, 150, 500])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize(("lost", "passed"), [(0.0, 0.0), (0.05, 0.0), (0.3, 0.05), (0.02, 0.2)])
def test_the_interval_covers_the_second_judges_share(total: int, share: float, lost: float, passed: float) -> None:
    """1,000 draws of 60 audited answers; the interval of the judged scores alone misses where they are biased."""
    rng = np.random.default_rng(round(1000 * (total + share + lost + passed)))
    covered = 0
    for _ in range(1_000):
        truth = rng.random(total) < share
        first = np.where(truth, rng.random(total) >= lost, rng.random(total) < passed).astype(float)
        audited: list[float | None] = [None] * total
        for index in rng.choice(total, 60, replace=False):
            audited[index] = float(truth[index])
        correction = corrected(first.tolist(), audited)
        assert correction is not None
        covered += correction.low <= share <= correction.high
    assert covered / 1_000 >= 0.93 - 0.016, "two standard errors of the count below 0.93"
