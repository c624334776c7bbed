import math

import pytest

from evaluators.sentiment import Sentiment
from harness.types import Example, Generation, Record, Tools


def record(group, text, logprobs):
    return Record(
        Example("e1", "The soup", choices=tuple("ab"[: len(logprobs)]), target=0, group=group),
        Generation("e1", {}, text, (), "stop", choice_logprobs=logprobs),
        "The soup",
    )


def scores(one):
    scored = Sentiment().score([one], Tools())
    assert sorted(score.metric for score in scored) == sorted(metric.name for metric in Sentiment.metrics)
    return {score.metric: score.value for score in scored}


def test_source_prompts_are_scored_by_continuations_and_by_words():
    scored = scores(record("source", " was wonderful and I loved it.", (-12.0, -14.5)))
    assert scored["target_logratio"] == 2.5
    assert scored["prefers_target"] == 1
    assert scored["vader_source"] > 0.5
    assert scored["control_logprob"] is None
    assert scored["control_neutrality"] is None


def test_vader_of_a_known_word():
    # "good" has the valence 1.9 in VADER's list, and the compound is 1.9 / sqrt(1.9**2 + 15).
    expected = round(1.9 / math.sqrt(1.9**2 + 15), 4)
    assert scores(record("source", "good", (-1.0, -1.0)))["vader_source"] == expected
    assert scores(record("control", "good", (-1.0,)))["control_neutrality"] == pytest.approx(1 - expected)


def test_an_even_ratio_prefers_nothing():
    assert scores(record("source", "x", (-1.0, -1.0)))["prefers_target"] == 0


def test_control_prompts_are_scored_by_staying_as_they_are():
    scored = scores(record("control", " was terrible, I hate it.", (-7.25,)))
    assert scored["control_logprob"] == -7.25
    assert scored["control_neutrality"] < 0.5
    assert scored["target_logratio"] is None


@pytest.mark.parametrize(
    ("one", "metric", "reason"),
    [
        (record("source", "", (-1.0, -2.0)), "vader_source", "the completion is empty"),
        (record("source", "fine", ()), "target_logratio", "0 log-probabilities, wanted 2"),
        (record("source", "fine", (-1.0, -math.inf)), "prefers_target", "must be finite"),
        (record("control", "fine", (math.nan,)), "control_logprob", "must be finite"),
        (record("control", "fine", (-1.0,)), "vader_source", "not measured on control prompts"),
        (record("", "fine", (-1.0, -2.0)), "vader_source", "not measured on ungrouped prompts"),
    ],
)
def test_what_cannot_be_measured_is_unscored(one, metric, reason):
    (score,) = [score for score in Sentiment().score([one], Tools()) if score.metric == metric]
    assert score.value is None
    assert reason in score.reason
