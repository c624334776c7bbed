"""Grades from a file: a grade belongs to one text, and is never guessed."""

import json
from pathlib import Path

import pytest

from harness.judges.table import TableJudge
from harness.scoring import Grading


def table(folder: Path, *rows: dict, name: str = "grades.jsonl", **options: object) -> TableJudge:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TableJudge(path=str(folder / name), **options)  # type: ignore[arg-type]


def asked(question: str, answer: str, rubric: str = "quality") -> Grading:
    return Grading(rubric, question, "gold", (), answer)


ROWS = (
    {"question": "Who?", "answer": " Ada.\n", "quality": 4.0, "simpleqa": "CORRECT"},
    {"question": "Who?", "answer": "Bob", "quality": "2", "simpleqa": None},
    {"question": "When?", "answer": "Ada.", "quality": "9", "simpleqa": "MAYBE"},
)


def test_a_grade_is_found_by_question_and_text(tmp_path: Path) -> None:
    judge = table(tmp_path, *ROWS)
    assert judge.rubrics == {"quality", "simpleqa"}
    first, second = judge.grade([asked("Who?", "Ada."), asked("Who? ", "Bob")])
    assert (first.value, first.expected) == ("4", 4.0)
    assert (second.value, second.expected) == ("2", 2.0)
    (label,) = judge.grade([asked("Who?", "Ada.", "simpleqa")])
    assert (label.value, label.expected) == ("CORRECT", None)


@pytest.mark.parametrize(
    ("grading", "reason"),
    [
        (asked("Who?", "Ada"), "holds no grade of quality for this text"),
        (asked("Where?", "Ada."), "holds no grade of quality for this text"),
        (asked("Who?", "Bob", "simpleqa"), "holds no grade of simpleqa for this text"),
        (asked("When?", "Ada."), "must be one of 1, 2, 3, 4, 5, got '9'"),
        (asked("When?", "Ada.", "simpleqa"), "got 'MAYBE'"),
    ],
)
def test_what_the_table_does_not_say_is_unscored(tmp_path: Path, grading: Grading, reason: str) -> None:
    (verdict,) = table(tmp_path, *ROWS).grade([grading])
    assert verdict.value is None
    assert reason in verdict.reason


def test_columns_of_any_name(tmp_path: Path) -> None:
    row = {"prompt": "Who?", "generated_text": "Ada.", "score": 3, "quality": 5}
    judge = table(tmp_path, row, question="prompt", answer="generated_text", grades={"quality": "score"})
    assert [verdict.value for verdict in judge.grade([asked("Who?", "Ada.")])] == ["3"]
    assert judge.rubrics == {"quality"}


def test_the_identity_is_that_of_the_grades(tmp_path: Path) -> None:
    here = table(tmp_path, *ROWS).identity
    assert table(tmp_path, *reversed(ROWS), name="other.jsonl").identity == here
    changed = ({**ROWS[0], "quality": 5}, *ROWS[1:])
    assert table(tmp_path, *changed, name="changed.jsonl").identity != here


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"question": "Who?", "text": "Ada."}], {}, "row 1 has no column answer; found question, text"),
        ([{"question": "Who?", "answer": "Ada."}], {}, "no column named after a rubric"),
        ([ROWS[0]], {"grades": {"quality": "score"}}, "row 1 has no column score"),
        ([ROWS[0], {**ROWS[0], "quality": 1}], {}, "row 2 grades quality 1, an earlier row gave the same text 4"),
        ([], {}, "holds no rows"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, rows: list[dict], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(tmp_path, *rows, **options).preflight()


def test_an_unknown_rubric_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no rubric niceness; it must be one of"):
        TableJudge(path="x.csv", grades={"niceness": "score"})
    with pytest.raises(FileNotFoundError, match=r"judge\.path=.*absent\.csv does not exist"):
        TableJudge(path=str(tmp_path / "absent.csv")).preflight()
