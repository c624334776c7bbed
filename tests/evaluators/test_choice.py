import math

import pytest

from evaluators.choice import Choice
from harness.types import Example, Generation, Record, Tools


def record(probabilities, target=0, metadata=None, choices=None):
    logprobs = tuple(math.log(p) if p else -math.inf for p in probabilities)
    names = choices or tuple(f"({number})" for number in range(len(logprobs)))
    example = Example("e1", "Which?", choices=names, target=target, metadata=metadata or {})
    return Record(example, Generation("e1", {}, "", (), "choice", choice_logprobs=logprobs), "Which?")


def scores(one):
    return {score.metric: score.value for score in Choice().score([one], Tools())}


@pytest.mark.parametrize(
    ("probabilities", "target", "accuracy", "difference", "probability"),
    [
        ((0.06, 0.02), 0, 1, math.log(3), 0.75),
        ((0.06, 0.02), 1, 0, -math.log(3), 0.25),
        ((0.2, 0.2), 0, 0, 0.0, 0.5),  # a tie is no choice
        ((0.1, 0.2, 0.1), 1, 1, math.log(2), 0.5),
        ((0.3, 0.2, 0.1), 2, 0, -math.log(3), 1 / 6),
    ],
)
def test_hand_worked_values(probabilities, target, accuracy, difference, probability):
    assert scores(record(probabilities, target)) == {
        "choice_accuracy": accuracy,
        "logit_difference": pytest.approx(difference),
        "choice_probability": pytest.approx(probability),
    }


def test_truthfulqa_counts_its_own_options_for_each_score():
    # MC1: 0.2 against 0.1, option 3 does not count. MC2: (0.2 + 0.1) of (0.2 + 0.3 + 0.1), option 1 does not count.
    one = record((0.2, 0.1, 0.3, 0.1), metadata={"mc1": [0, 1], "mc2": [0, 2, 3], "true": [0, 3]})
    assert scores(one) == {
        "choice_accuracy": 1,
        "logit_difference": pytest.approx(math.log(2)),
        "choice_probability": pytest.approx(0.5),
    }


def test_very_unlikely_options_are_compared_all_the_same():
    example = Example("e1", "Which?", choices=("a", "b"), target=0)
    far = Generation("e1", {}, "", (), "choice", choice_logprobs=(-2000.0, -2001.0))
    scored = scores(Record(example, far, "Which?"))
    assert scored["choice_probability"] == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (record((0.5,)), "no two options"),
        (record((0.5, 0.1), target=None), "no two options"),
        (record((0.5, 0.1), choices=("a", "b", "c")), "2 log-probabilities for 3 options"),
        (record((0.5, 0)), "must be finite"),
    ],
)
def test_what_cannot_be_compared_is_unscored(one, reason):
    scored = Choice().score([one], Tools())
    assert [score.value for score in scored] == [None, None, None]
    assert reason in scored[0].reason
