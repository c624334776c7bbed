import math

import pytest

from evaluators.perplexity import Perplexity, repetition
from harness.types import Example, Generation, Record, Tools


class WordScorer:
    """Gives every word the probability 1/2, or 1/8 in a text without context; "never" cannot be."""

    name = "words"

    def loglikelihood(self, prompts, completions):
        assert len(prompts) == len(completions)
        return [self._one(prompt, completion.split()) for prompt, completion in zip(prompts, completions, strict=True)]

    def _one(self, prompt, words):
        if "never" in words:
            return -math.inf, len(words)
        words = [word for word in words if word != "mute"]
        return len(words) * math.log(1 / 2 if prompt else 1 / 8), len(words)


def record(text, name="e1"):
    return Record(Example(name, "Who?"), Generation(name, {}, text, (), "stop"), "Question: Who?\nAnswer:")


def scores(*records, **options):
    return Perplexity(**options).score(records, Tools(scorer=WordScorer()))


def test_perplexity_is_exp_of_the_mean_negative_log_likelihood():
    value = scores(record(" one two three"))[0]
    assert value.value == pytest.approx(2)
    assert value.details["tokens"] == 3


def test_the_full_text_is_scored_without_context():
    value = scores(record(" one"), scored_text="full")[0]
    assert value.value == pytest.approx(8)
    assert value.details["tokens"] == 4  # Question:, Who?, Answer:, one


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c", 0.0),
        ("a b c a b c", 1 / 4),  # abc bca cab abc: one of four repeats
        ("no no no no no", 2 / 3),  # three 3-grams, two repeat the first
        ("a b", 0.0),
        ("A b c a b c", 0.0),  # words are compared as they are written: Abc bca cab abc
    ],
)
def test_repetition_by_hand(text, expected):
    assert repetition(text) == pytest.approx(expected)


def test_an_empty_completion_is_unscored_and_shifts_nobody():
    scored = scores(
        record("", "e1"), record("one two", "e2"), record(" \n", "e3"), record("mute", "e4"), record("x", "e5")
    )
    values = {(score.example_id, score.metric): score.value for score in scored}

    assert len(scored) == 5 * len(Perplexity.metrics)
    assert [values[name, "perplexity"] for name in ("e1", "e2", "e3", "e4", "e5")] == [
        None,
        pytest.approx(2),
        None,
        None,
        pytest.approx(2),
    ]
    assert values["e3", "repetition"] is None
    assert values["e4", "repetition"] == 0
    assert [values[name, "empty"] for name in ("e1", "e2", "e3", "e4", "e5")] == [1, 0, 1, 0, 0]
    assert [values[name, "broken"] for name in ("e1", "e2", "e3", "e4", "e5")] == [1, 0, 1, 1, 0]


def test_a_blank_completion_is_scored_with_its_prompt():
    scored = scores(record(" \n", "e1"), record("", "e2"), record(" one", "e3"), scored_text="full")
    values = {(score.example_id, score.metric): score for score in scored}
    assert [values[name, "perplexity"].value for name in ("e1", "e2", "e3")] == [pytest.approx(8)] * 3
    assert [values[name, "perplexity"].details["tokens"] for name in ("e1", "e2", "e3")] == [3, 3, 4]
    assert values["e1", "repetition"].value is values["e2", "repetition"].value is None
    assert values["e3", "repetition"].value == 0


def test_a_blank_text_without_a_prompt_is_unscored():
    nothing = Record(Example("e1", "Who?"), Generation("e1", {}, " ", (), "stop"), "\n")
    values = {score.metric: score.value for score in scores(nothing, scored_text="full")}
    assert values == {"perplexity": None, "repetition": None, "broken": 1, "empty": 1}


def test_an_impossible_text_is_unscored():
    by_metric = {score.metric: score for score in scores(record("never"))}
    assert by_metric["perplexity"].value is None
    assert "inf" in by_metric["perplexity"].reason
    assert by_metric["repetition"].value == 0
    assert by_metric["broken"].value == 1


@pytest.mark.parametrize(
    ("text", "limit", "broken"),
    [("one two", None, 0), ("one two", 1.5, 1), ("one two", 2.5, 0), ("no no no no no", None, 1), ("", None, 1)],
)
def test_what_is_not_worth_reading_is_broken(text, limit, broken):
    by_metric = {score.metric: score for score in scores(record(text), broken_above=limit)}
    assert by_metric["broken"].value == broken


def test_a_scorer_is_needed():
    with pytest.raises(ValueError, match="perplexity needs a scorer"):
        Perplexity().score([record("x")], Tools())
    assert Perplexity.needs == {"scorer"}


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="must be completion or full, got 'prompt'"):
        Perplexity(scored_text="prompt")
