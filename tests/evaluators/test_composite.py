"""The composite: hand-worked values, and what a missing sub-score leads to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

from evaluators.composite import Composite
from evaluators.token_overlap import TokenOverlap
from harness.judges.match import MatchJudge
from harness.types import Example, Generation, Grading, Record, Score, Tools, Verdict


@dataclass
class ByRubric:
    """A judge that gives each rubric its own score, and none where it is told None."""

    scores: Mapping[str, str | None]
    identity: str = "by rubric v1"
    rubrics: frozenset[str] = frozenset({"accuracy", "coherence", "relevance", "quality"})

    def preflight(self) -> None:
        """Nothing to reach."""

    def grade(self, gradings: Sequence[Grading]) -> list[Verdict]:
        """One verdict per grading; an answer that begins with a digit gets that digit."""
        return [self._verdict(grading) for grading in gradings]

    def _verdict(self, grading: Grading) -> Verdict:
        value = grading.answer[0] if grading.answer[:1].isdigit() else self.scores[grading.rubric]
        return Verdict(value, reason="" if value else "no reply", raw="raw", details={"prompt_hash": grading.rubric})


def record(name: str, text: str) -> Record:
    return Record(Example(name, "Where?", "San Marino"), Generation(name, {}, text, (), "stop"), "Q:")


def values(scores: Sequence[Score], example_id: str) -> dict[str, float | None]:
    return {score.metric: score.value for score in scores if score.example_id == example_id}


def test_hand_worked_with_three_sub_scores() -> None:
    judge = ByRubric({"accuracy": "2", "coherence": "5", "relevance": "4"})
    scores = Composite(overlap=TokenOverlap()).score(
        [record("a", "In San Remo"), record("b", "San Marino")], Tools(judge=judge)
    )
    parts = {"factual_accuracy": 2, "coherence": 5, "relevance": 4, "quality": 11 / 3}
    assert values(scores, "a") == pytest.approx({"composite": 0.25 + 11 / 30, "accurate": 1, **parts})
    assert values(scores, "b") == pytest.approx({"composite": 0.5 + 11 / 30, "accurate": 1, **parts})


def test_hand_worked_with_the_single_score() -> None:
    evaluator = Composite(overlap=TokenOverlap(), single_score=True)
    scores = evaluator.score([record("a", "3 San"), record("b", "1 no")], Tools(judge=ByRubric({})))
    assert values(scores, "a") == pytest.approx({"composite": 0.25 + 0.3, "accurate": 0, "quality": 3})
    assert values(scores, "b") == pytest.approx({"composite": 0.1, "accurate": 0, "quality": 1})
    assert evaluator.rubrics == {"quality"}


def test_exactly_at_the_threshold_is_accurate() -> None:
    scores = Composite(overlap=TokenOverlap(), single_score=True).score(
        [record("a", "1 San Marino")], Tools(judge=ByRubric({}))
    )
    assert values(scores, "a") == pytest.approx({"composite": 0.6, "accurate": 1, "quality": 1})


def test_a_missing_sub_score_leaves_only_what_hangs_on_it_unscored() -> None:
    judge = ByRubric({"accuracy": "2", "coherence": None, "relevance": "4"})
    scores = Composite(overlap=TokenOverlap()).score([record("a", "San Marino")], Tools(judge=judge))
    of_a = values(scores, "a")
    assert [name for name, value in of_a.items() if value is None] == ["composite", "accurate", "quality", "coherence"]
    assert all(score.reason for score in scores if score.value is None)
    assert "coherence: no reply" in scores[0].reason
    assert of_a["factual_accuracy"] == 2


def test_one_score_per_record_and_metric_within_range_in_any_order() -> None:
    judge = ByRubric({"accuracy": "1", "coherence": "1", "relevance": "1"})
    records = [record("a", ""), record("b", "5 San Marino"), record("c", "San")]
    evaluator = Composite(overlap=TokenOverlap())
    scores = evaluator.score(records, Tools(judge=judge))
    assert sorted(scores, key=str) == sorted(evaluator.score(records[::-1], Tools(judge=judge)), key=str)
    for metric in evaluator.metrics:
        column = [score for score in scores if score.metric == metric.name]
        assert [score.example_id for score in column] == ["a", "b", "c"]
        assert all(score.value is not None and metric.low <= score.value <= metric.high for score in column)


def test_the_judge_is_traced_in_every_score() -> None:
    judge = ByRubric({"accuracy": "1", "coherence": "1", "relevance": "1"})
    scores = Composite(overlap=TokenOverlap()).score([record("a", "x")], Tools(judge=judge))
    assert scores[0].details["factual_accuracy"]["prompt_hash"] == "accuracy"
    assert scores[-1].details["prompt_hash"] == "relevance"


def test_refuses_what_it_cannot_do() -> None:
    assert not Composite(overlap=TokenOverlap()).rubrics & MatchJudge().rubrics
    with pytest.raises(ValueError, match="judge=match grades only simpleqa"):
        Composite(overlap=TokenOverlap()).score([record("a", "x")], Tools(judge=MatchJudge()))
    with pytest.raises(ValueError, match="needs a judge"):
        Composite(overlap=TokenOverlap()).score([record("a", "x")], Tools())
    with pytest.raises(ValueError, match="threshold must be between 0 and 1"):
        Composite(overlap=TokenOverlap(), threshold=1.5)


def test_the_overlap_is_that_of_the_evaluator_that_is_named() -> None:
    echo = Record(Example("a", "Is it San Marino?", "San Marino"), Generation("a", {}, "no", (), "stop"), "San Marino?")
    full = TokenOverlap(scored_text="full", tokens="nltk")
    for overlap, value in ((TokenOverlap(), 0.0), (full, 0.5)):
        scores = Composite(overlap=overlap, single_score=True).score([echo], Tools(judge=ByRubric({"quality": "3"})))
        assert values(scores, "a")["composite"] == pytest.approx(value + 0.3)


def test_the_full_text_is_graded_with_its_prompt() -> None:
    class Heard(ByRubric):
        def grade(self, gradings: Sequence[Grading]) -> list[Verdict]:
            heard.extend(grading.answer for grading in gradings)
            return super().grade(gradings)

    heard: list[str] = []
    judge = Heard({"quality": "3"})
    for text in ("completion", "full"):
        Composite(overlap=TokenOverlap(), single_score=True, graded_text=text).score(
            [record("a", " San")], Tools(judge=judge)
        )
    assert heard == [" San", "Q: San"]


def test_an_unknown_graded_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"composite\.graded_text must be completion or full, got 'prompt'"):
        Composite(overlap=TokenOverlap(), graded_text="prompt")  # type: ignore[arg-type]
