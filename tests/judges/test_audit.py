"""A second judge on a random part: which answers it sees, where its verdicts end up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from evaluators.composite import Composite
from evaluators.simpleqa_rubric import SimpleQARubric
from evaluators.token_overlap import TokenOverlap
from harness.judges.audit import AuditedJudge
from harness.judges.match import MatchJudge
from harness.judges.usage import Usage
from harness.scoring import audited_score
from harness.types import Example, Generation, Grading, Judge, Record, Score, Tools, Verdict

SCALES = frozenset({"accuracy", "coherence", "relevance", "quality"})


@dataclass(eq=False)
class Fixed(Judge):
    """A judge that always says the same, and remembers what it was asked."""

    name: str
    value: str | None
    rubrics: frozenset[str] = SCALES | {"simpleqa"}
    seen: list[Grading] = field(default_factory=list)

    @property
    def identity(self) -> str:
        return self.name

    def grade(self, gradings: Sequence[Grading]) -> list[Verdict]:
        self.seen += gradings
        return [Verdict(self.value, reason="" if self.value else "no idea") for _ in gradings]


def gradings(count: int, answer: str = "It is {}.") -> list[Grading]:
    return [Grading("simpleqa", f"What is number {i}?", str(i), (), answer.format(i)) for i in range(count)]


def records(count: int) -> list[Record]:
    made = []
    for number in range(count):
        example = Example(str(number), f"What is number {number}?", str(number))
        made.append(Record(example, Generation(str(number), {}, f"It is {number}.", (1,), "stop"), example.question))
    return made


def test_the_second_judge_sees_so_many_and_both_verdicts_are_kept() -> None:
    second = Fixed("second v1", "INCORRECT")
    judge = AuditedJudge(first=MatchJudge(), second=second, sample=7)
    verdicts = judge.grade(gradings(40))
    assert [verdict.value for verdict in verdicts] == ["CORRECT"] * 40, "the first judge's verdict is the score"
    audits = [verdict.audit for verdict in verdicts if verdict.audit]
    assert [audit.value for audit in audits] == ["INCORRECT"] * 7 == ["INCORRECT"] * len(second.seen)
    assert {audit.details["judge"] for audit in audits} == {"second v1"}


def test_the_same_questions_are_audited_in_every_entry_and_order() -> None:
    seen = []
    for asked in (gradings(50), gradings(50, "No, {}."), gradings(50)[::-1]):
        second = Fixed("second v1", "CORRECT")
        AuditedJudge(first=MatchJudge(), second=second, sample=10).grade(asked)
        seen.append({grading.question for grading in second.seen})
    assert seen[0] == seen[1] == seen[2]
    other = Fixed("second v1", "CORRECT")
    AuditedJudge(first=MatchJudge(), second=other, sample=10, seed=1).grade(gradings(50))
    assert {grading.question for grading in other.seen} != seen[0]


def test_fewer_answers_than_the_sample_are_all_audited() -> None:
    verdicts = AuditedJudge(first=MatchJudge(), second=Fixed("second v1", "CORRECT")).grade(gradings(5))
    assert all(verdict.audit for verdict in verdicts)


def test_labels_scores_carry_what_the_second_judge_made_of_them() -> None:
    judge = AuditedJudge(first=MatchJudge(), second=Fixed("second v1", "NOT_ATTEMPTED"), sample=3)
    scores = SimpleQARubric().score(records(9), Tools(judge=judge))
    audited = [score for score in scores if "audit" in score.details]
    assert len(audited) == 3 * 3
    audits = {(score.metric, score.value, audited_score(score.details)) for score in audited}
    assert audits == {("correct", 1.0, 0.0), ("incorrect", 0.0, 0.0), ("not_attempted", 0.0, 1.0)}
    assert {score.details["audit"]["judge"] for score in audited} == {"second v1"}
    assert {score.details["judge"] for score in scores} == {MatchJudge().identity}


def test_an_unscored_audit_is_kept_with_its_reason() -> None:
    judge = AuditedJudge(first=MatchJudge(), second=Fixed("second v1", None), sample=2)
    scores = SimpleQARubric().score(records(4), Tools(judge=judge))
    audits = [score.details["audit"] for score in scores if "audit" in score.details]
    assert {(audit["score"], audit["reason"]) for audit in audits} == {(None, "no idea")}
    assert all(score.value is not None for score in scores)


@pytest.mark.parametrize("single_score", [False, True])
def test_totals_of_the_composite_are_audited_as_well(single_score: bool) -> None:
    judge = AuditedJudge(first=Fixed("first v1", "5"), second=Fixed("second v1", "1"), sample=4)
    evaluator = Composite(overlap=TokenOverlap(), single_score=single_score)
    scores = evaluator.score(records(8), Tools(judge=judge))
    composite = [score for score in scores if score.metric == "composite"]
    audited = [score for score in composite if "audit" in score.details]
    assert len(audited) == 4
    assert [score.value for score in audited] == [1.0] * 4
    assert [audited_score(score.details) for score in audited] == [pytest.approx(0.5 + 0.5 / 5)] * 4


def test_usage_adds_up_and_an_unknown_cost_stays_unknown() -> None:
    first, second = Fixed("first v1", "5"), Fixed("second v1", "5")
    first.usage, second.usage = Usage(calls=2, cost=0.5), Usage(calls=3, cost=0.25)
    judge = AuditedJudge(first=first, second=second)
    assert (judge.usage.calls, judge.usage.cost) == (5, 0.75)
    second.usage = Usage(cost=None)
    assert judge.usage.cost is None


def test_settings_that_audit_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"judge\.sample must be above 0, got 0"):
        AuditedJudge(first=MatchJudge(), second=Fixed("second v1", "5"), sample=0)
    with pytest.raises(ValueError, match="must differ"):
        AuditedJudge(first=MatchJudge(), second=MatchJudge())


def test_it_grades_what_both_can_and_shows_the_first_ones_calibration() -> None:
    judge = AuditedJudge(first=MatchJudge(), second=Fixed("second v1", "CORRECT"))
    assert judge.rubrics == {"simpleqa"}
    assert judge.calibration["judge"] == MatchJudge().identity
    assert judge.calibration["audited_by"] == {"judge": "second v1", "mark": "not calibrated"}
    assert "second v1" in judge.identity


def test_a_judge_written_to_the_contract_alone_is_judged_and_not_calibrated() -> None:
    judge = Fixed("plain v1", "CORRECT")
    assert judge.calibration == {"judge": "plain v1", "mark": "not calibrated"}
    assert judge.usage is None
    assert "cost unknown" in str(judge.forecast(gradings(2)))
    judge.preflight()
    scores: list[Score] = SimpleQARubric().score(records(2), Tools(judge=judge))
    scores += Composite(overlap=TokenOverlap(), single_score=True).score(
        records(2), Tools(judge=Fixed("plain v1", "3"))
    )
    for score in scores:
        assert "plain v1" in str(score.details), "a score names its judge though the verdict did not"


def test_a_judge_without_identity_or_grade_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="property 'identity'"):
        _ = Judge().identity
    with pytest.raises(NotImplementedError, match="method 'grade'"):
        Judge().grade([])
