"""A judge that was asked before: grades that lie in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from harness.judges.prompts import RUBRICS, rubric_named
from harness.scoring import Grading, Judge, Verdict
from harness.tasks.rows import check_columns, file_rows, plain_text


@dataclass(frozen=True, kw_only=True, eq=False)
class TableJudge(Judge):
    """Looks grades up that somebody gave before: another judge, the authors of a paper, people.

    A grade belongs to one text. It is found by the question and by exactly the text that was graded, white space at
    the ends aside; an answer that the table does not hold has no grade. Who gave the grades, and how far they can be
    trusted, the table does not say: they count as not calibrated.

    Args:
        path: a file (CSV, JSON Lines, JSON, Parquet) or URL with one row per graded text.
        question: column of questions.
        answer: column of the texts as the grader saw them.
        grades: columns of grades by rubric, ``{quality: score}``; empty takes columns named after rubrics.
    """

    path: str
    question: str = "question"
    answer: str = "answer"
    grades: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse rubrics that nobody knows."""
        if unknown := sorted(set(self.grades) - set(RUBRICS)):
            raise ValueError(f"judge.grades: there is no rubric {unknown[0]}; it must be one of {', '.join(RUBRICS)}")

    @cached_property
    def _rows(self) -> list[dict]:
        rows = file_rows(self.path, "judge.path")
        if not rows:
            raise ValueError(f"judge.path={self.path} holds no rows")
        check_columns(rows, (self.question, self.answer, *self.grades.values()), self.path)
        return rows

    @cached_property
    def _columns(self) -> Mapping[str, str]:
        named = {name: name for name in RUBRICS if any(name in row for row in self._rows)}
        if not self.grades and not named:
            raise ValueError(
                f"judge.path={self.path} has no column named after a rubric ({', '.join(RUBRICS)}): say which column "
                "holds the grades of which, e.g. 'judge.grades={quality: score}'"
            )
        return self.grades or named

    @cached_property
    def _known(self) -> dict[tuple[str, str], dict[str, str]]:
        """Grade by rubric, by question and text."""
        known: dict[tuple[str, str], dict[str, str]] = {}
        for number, row in enumerate(self._rows, start=1):
            grades = {rubric: grade_of(row.get(column)) for rubric, column in self._columns.items()}
            place = _place(plain_text(row[self.question]), plain_text(row[self.answer]))
            for rubric, grade in grades.items():
                if grade and known.setdefault(place, {}).setdefault(rubric, grade) != grade:
                    raise ValueError(
                        f"{self.path}: row {number} grades {rubric} {grade}, an earlier row gave the same text "
                        f"{known[place][rubric]}: one grade for each text"
                    )
        return known

    @property
    def rubrics(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those that the table has a column for."""
        return frozenset(self._columns)

    @cached_property
    def identity(self) -> str:
        """The hash of all grades: runs that are compared must have theirs from one table."""
        content = sorted((*place, *sorted(grades.items())) for place, grades in self._known.items())
        return f"table {hashlib.sha256(repr(content).encode()).hexdigest()[:12]}"

    def preflight(self) -> None:
        """Read the table.

        Raises:
            ValueError, FileNotFoundError: it cannot be read, or grades one text in two ways.
        """
        _ = self._known

    def forecast(self, gradings: Sequence[Grading]) -> str:
        """How many of these the table holds."""
        return f"{len(gradings)} gradings from a table, no calls, price $0.0000"

    def grade(self, gradings: Sequence[Grading]) -> list[Verdict]:
        """One verdict per grading, in order; without a grade where the table has none for this very text."""
        return [self._verdict(grading) for grading in gradings]

    def _verdict(self, grading: Grading) -> Verdict:
        grade = self._known.get(_place(grading.question, grading.answer), {}).get(grading.rubric)
        rubric = rubric_named(grading.rubric)
        if grade is None:
            return Verdict(None, reason=f"the table holds no grade of {grading.rubric} for this text")
        if grade not in rubric.answers.values():
            allowed = ", ".join(rubric.answers.values())
            return Verdict(None, reason=f"the table's grade must be one of {allowed}, got {grade!r}", raw=grade)
        return Verdict(grade, raw=grade, expected=float(grade) if rubric.numeric else None)


def grade_of(cell: object) -> str:
    """A grade as rubrics spell it, "" for an empty cell: a column with gaps turns 2 into 2.0."""
    return plain_text(cell).strip().removesuffix(".0")


def _place(question: str, answer: str) -> tuple[str, str]:
    return question.strip(), answer.strip()
