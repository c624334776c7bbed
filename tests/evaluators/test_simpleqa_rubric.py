"""The rubric's metrics: the official figures, and never a default label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from evaluators.simpleqa_rubric import SimpleQARubric
from harness.judges.match import MatchJudge
from harness.types import Example, Generation, Grading, Record, Score, Tools, Verdict

LETTERS = {"A": "CORRECT", "B": "INCORRECT", "C": "NOT_ATTEMPTED"}


@dataclass
class Scripted:
    """A judge that says what it is told."""

    verdicts: Sequence[Verdict]
    identity: str = "scripted v1"
    rubrics: frozenset[str] = frozenset({"simpleqa"})
    asked: list[Grading] = field(default_factory=list)

    def preflight(self) -> None:
        """Nothing to reach."""

    def grade(self, gradings: Sequence[Grading]) -> list[Verdict]:
        """The verdicts in order."""
        self.asked += gradings
        return list(self.verdicts)


def record(name: str, text: str = "An answer.", gold: str = "Paris") -> Record:
    example = Example(name, "What is the capital of France?", gold, ("City of Light",))
    return Record(example, Generation(name, {}, text, (), "stop"), "Q:")


def scored(values: Sequence[str | None]) -> list[Score]:
    verdicts = [Verdict(value, reason="" if value else "no single grade", raw="?") for value in values]
    records = [record(str(i)) for i in range(len(values))]
    return SimpleQARubric().score(records, Tools(judge=Scripted(verdicts)))


def test_figures_equal_the_official_ones(golden: Callable) -> None:
    arrays = golden("simpleqa")
    names = [str(name) for name in arrays["aggregate_names"]]
    for index in range(sum(name.startswith("grades_") for name in arrays)):
        scores = scored([LETTERS[str(letter)] for letter in arrays[f"grades_{index}"]])
        mine = SimpleQARubric().derived(scores)
        for metric in ("correct", "incorrect", "not_attempted"):
            mine[metric] = float(np.mean([s.value for s in scores if s.metric == metric]))
        official = dict(zip(names, arrays[f"aggregates_{index}"].tolist(), strict=True))
        pairs = {
            "is_correct": "correct",
            "is_incorrect": "incorrect",
            "is_not_attempted": "not_attempted",
            "is_given_attempted": "attempted",
            "accuracy_given_attempted": "correct_given_attempted",
        }
        assert set(pairs) == set(official)
        for theirs, ours in pairs.items():
            assert mine[ours] == pytest.approx(official[theirs], abs=1e-12)
        assert mine["f1"] == pytest.approx(float(arrays[f"f1_{index}"]), abs=1e-12)


def test_hand_worked_figures() -> None:
    derived = SimpleQARubric().derived(scored(["CORRECT", "INCORRECT", "INCORRECT", "NOT_ATTEMPTED"]))
    assert derived == pytest.approx({"attempted": 0.75, "correct_given_attempted": 1 / 3, "f1": 2 / 7})


def test_nothing_right_is_zero_and_not_an_error() -> None:
    assert SimpleQARubric().derived(scored(["NOT_ATTEMPTED"]))["f1"] == 0
    assert SimpleQARubric().derived(scored([None])) == {}
    assert SimpleQARubric().derived([]) == {}


def test_unscored_keeps_reason_and_raw_reply_and_counts_nowhere() -> None:
    scores = scored(["CORRECT", None])
    missing = [score for score in scores if score.value is None]
    assert [score.metric for score in missing] == ["correct", "incorrect", "not_attempted"]
    assert {score.reason for score in missing} == {"no single grade"}
    assert missing[0].details["raw"] == "?"
    assert SimpleQARubric().derived(scores)["correct_given_attempted"] == 1


def test_a_label_that_is_none_of_the_three_is_unscored() -> None:
    assert all(score.value is None for score in scored(["MAYBE"]))


def test_works_with_the_rule_judge_and_hands_over_aliases() -> None:
    records = [
        record("a", "It is Paris."),
        record("b", "Lyon."),
        record("c", "I do not know."),
        record("d", "The City of Light"),
    ]
    scores = SimpleQARubric().score(records, Tools(judge=MatchJudge()))
    assert [s.value for s in scores if s.metric == "correct"] == [1, 0, 0, 1]
    assert [s.value for s in scores if s.metric == "not_attempted"] == [0, 0, 1, 0]
    assert scores[0].details["judge"] == MatchJudge().identity
    assert scores[0].details["prompt_hash"]


def test_verified_asks_for_its_own_rubric() -> None:
    judge = Scripted([Verdict("CORRECT")])
    evaluator = SimpleQARubric(rubric="simpleqa_verified")
    evaluator.score([record("a")], Tools(judge=judge))
    assert judge.asked[0].rubric == "simpleqa_verified"
    assert evaluator.rubrics == {"simpleqa_verified"}


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="needs a judge"):
        SimpleQARubric().score([record("a")], Tools())
    with pytest.raises(ValueError, match="rubric must be"):
        SimpleQARubric(rubric="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="between 0 and 1"):
        SimpleQARubric(max_unscored=2)


def test_the_full_text_is_graded_with_its_prompt() -> None:
    judge = Scripted([Verdict("CORRECT")])
    for text in ("completion", "full"):
        SimpleQARubric(graded_text=text).score([record("e", " Paris.")], Tools(judge=judge))
    assert [grading.answer for grading in judge.asked] == [" Paris.", "Q: Paris."]


def test_an_unknown_graded_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"simpleqa_rubric\.graded_text must be completion or full, got 'prompt'"):
        SimpleQARubric(graded_text="prompt")  # type: ignore[arg-type]
