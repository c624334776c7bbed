"""Preference and utility log-odds, by hand."""

import math

import pytest

from evaluators.preference_utility import PreferenceUtility
from harness.types import Example, Generation, Record, Tools


def scores(logprobs: tuple[float, ...], target: int | None = 0, options: int | None = None) -> dict[str, float | None]:
    names = tuple(f"({number})" for number in range(len(logprobs) if options is None else options))
    example = Example("e1", "Which?", choices=names, target=target)
    one = Record(example, Generation("e1", {}, "", (), "choice", choice_logprobs=logprobs), "Which?")
    return {score.metric: score.value for score in PreferenceUtility().score([one], Tools())}


def logs(*probabilities: float) -> tuple[float, ...]:
    return tuple(math.log(value) for value in probabilities)


@pytest.mark.parametrize(
    ("probabilities", "target", "preference", "utility"),
    [
        ((0.6, 0.2), 0, math.log(3), math.log(4)),
        ((0.6, 0.2), 1, -math.log(3), math.log(4)),
        ((0.25, 0.125, 0.125), 0, 0.0, 0.0),
        ((0.002, 0.001), 0, math.log(2), math.log(0.003 / 0.997)),
    ],
)
def test_hand_worked_values(probabilities: tuple[float, ...], target: int, preference: float, utility: float) -> None:
    assert scores(logs(*probabilities), target) == {
        "preference": pytest.approx(preference),
        "utility": pytest.approx(utility),
    }


def test_a_push_that_breaks_the_model_raises_preference_and_lowers_utility() -> None:
    before, after = scores(logs(0.3, 0.6)), scores(logs(0.009, 0.001))
    assert after["preference"] > before["preference"]  # pyright: ignore[reportOptionalOperand]
    assert after["utility"] < before["utility"]  # pyright: ignore[reportOptionalOperand]


def test_certainty_stays_finite() -> None:
    """In float32 the options' probabilities may add up to a little more than 1."""
    certain = scores((math.log(0.9), math.log(0.1) + 1e-6))
    assert certain["utility"] == pytest.approx(math.log(999_999), abs=1e-6)
    assert scores((-900.0, -901.0))["utility"] == pytest.approx(-900 + math.log(1 + math.exp(-1)))


@pytest.mark.parametrize(
    ("logprobs", "target", "options"),
    [((), 0, 2), ((-1.0,), 0, 1), ((-1.0, -2.0), None, 2), ((-1.0, math.nan), 0, 2), ((-1.0, -math.inf), 0, 2)],
)
def test_what_cannot_be_compared_is_unscored(logprobs: tuple[float, ...], target: int | None, options: int) -> None:
    assert scores(logprobs, target, options) == {"preference": None, "utility": None}
