"""Variety by hand, and through a run that draws samples."""

import pytest

from evaluators.diversity import Diversity, distance, distinct_pairs
from harness.build import build
from harness.config import composed
from harness.types import Example, Generation, Record, Tools


def record(name: str, text: str, question: str = "Say something.", unit: str = "a") -> Record:
    return Record(Example(name, question, cluster=unit), Generation(name, {}, text, (), "stop"), question)


def scores(*records: Record) -> dict[tuple[str, str], float | None]:
    return {(one.example_id, one.metric): one.value for one in Diversity().score(records, Tools())}


def test_worked_by_hand() -> None:
    # red green / green blue: 1 of 3 words in common; red green / red green: all; pairs: 2 different ones of 3.
    made = scores(record("1", "Red, green!"), record("2", "green blue"), record("3", "red green"))
    assert made[("1", "diversity")] == pytest.approx((2 / 3 + 0) / 2)
    assert made[("2", "diversity")] == pytest.approx(2 / 3)
    assert {made[(name, "distinct_2")] for name in "123"} == {2 / 3}


def test_silence_is_no_variety() -> None:
    made = scores(record("1", "red green"), record("2", ""), record("3", " ?! "))
    assert [made[(name, "diversity")] for name in "123"] == [0, 0, 0]
    assert made[("1", "distinct_2")] == 1
    assert scores(record("1", ""), record("2", "red"))[("1", "distinct_2")] is None


def test_items_are_told_apart_and_the_only_sample_has_nothing_to_differ_from() -> None:
    made = Diversity().score(
        [record("1", "red"), record("2", "red", question="And?"), record("3", "red", unit="b")], Tools()
    )
    assert all(score.value is None and score.reason == "the only sample of its item" for score in made)


def test_the_same_text_is_at_distance_nothing_and_another_one_at_one() -> None:
    assert distance(["red", "green"], [["green", "red", "red"]]) == 0
    assert distance(["red"], [["blue"], ["green"]]) == 1
    assert distinct_pairs([["no"] * 5]) == 1 / 4


def test_a_task_with_one_sample_of_each_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"compares the samples of an item, and there is one of each: set task.num_samples"
    ):
        Diversity().check([Example("1", "A?"), Example("2", "B?")])
    Diversity().check([Example("1~0", "A?", cluster="1"), Example("1~1", "A?", cluster="1")])


def test_records_that_are_no_samples_of_their_own_are_refused() -> None:
    with pytest.raises(ValueError, match="some are there twice"):
        scores(record("1", "red"), record("1", "blue"))


TERM = (
    "{_target_: harness.search.objective.Term, metric: diversity, weight: 1.0, cap: null, unscored: worst, "
    "evaluator: {_target_: evaluators.diversity.Diversity, max_unscored: 1.0}}"
)


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=caa", "search=dev_split", f"objective.terms=[{TERM}]"],
        ["method=baseline", "protocol=baseline_failures", "evaluator=[simpleqa_rubric,diversity]"],
    ],
)
def test_a_search_and_a_subset_do_not_hold_samples_together(overrides: list[str]) -> None:
    given = ["model=tiny", "task.limit=4", "task.num_samples=2", "task.temperature=1", "tracking=none", *overrides]
    with pytest.raises(ValueError, match="which a search and other protocols than standard do not hold together"):
        build(*composed(given), given)
