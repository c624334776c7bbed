"""The strict parser: one grade or none, never a default."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from harness.judges.parsing import parse, reply_schema
from harness.judges.prompts import LABELS, RUBRICS

LABEL, SCORE = RUBRICS["simpleqa"], RUBRICS["quality"]


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("A", "CORRECT"),
        (" (b). ", None),
        ("(B)", "INCORRECT"),
        ("**C**", "NOT_ATTEMPTED"),
        ("A: CORRECT", "CORRECT"),
        ("A (CORRECT)", "CORRECT"),
        ("A: INCORRECT", None),
        ("CORRECT", "CORRECT"),
        ("Incorrect.", "INCORRECT"),
        ("not attempted", "NOT_ATTEMPTED"),
        ("NOT_ATTEMPTED", "NOT_ATTEMPTED"),
        ("NOT CORRECT", None),
        ("not correct", None),
        ("This is not the CORRECT answer.", None),
        ("I would not call that CORRECT", None),
        ("The grade is CORRECT.", "CORRECT"),
        ("INCORRECT, not CORRECT.", "INCORRECT"),
        ("It is not INCORRECT; it is CORRECT", "CORRECT"),
        ("CORRECT or INCORRECT", None),
        ("UNCORRECT", None),
        ("Apple", None),
        ("A B", None),
        ("D", None),
        ("", None),
        ("Grade: A", "CORRECT"),
        ("Answer: B.", "INCORRECT"),
        ('{"grade": "A"}', "CORRECT"),
        ('```json\n{"grade": "B"}\n```', "INCORRECT"),
        ('{"grade": "A"', None),
        ('{"grade": "CORRECT', None),
        ('{"grade": "Z"}', None),
        ('{"grade": "A", "other": "B"}', None),
        ('{"grade": null}', None),
        ('{"grade": ["A"]}', None),
        ("<think>Perhaps CORRECT?</think>\nB", "INCORRECT"),
        ("<think>A is CORRECT", None),
    ],
)
def test_labels(reply: str, grade: str | None) -> None:
    assert parse(reply, LABEL) == grade


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("4", "4"),
        ("4.", "4"),
        ("4/5", "4"),
        ("5 out of 5", "5"),
        ("**Score:** 3", "3"),
        ("The score is 2.", "2"),
        ("I give it a score of 3, as there are 2 errors.", "3"),
        ("4.5", None),
        ("0", None),
        ("6", None),
        ("45", None),
        ("Score: 3 or score 4", None),
        ("five", None),
        ('{"grade": 4}', "4"),
        ('{"grade": true}', None),
    ],
)
def test_scores(reply: str, grade: str | None) -> None:
    assert parse(reply, SCORE) == grade


def test_every_allowed_answer_parses_to_its_value_bare_and_structured() -> None:
    for rubric in RUBRICS.values():
        for answer, value in rubric.answers.items():
            assert parse(answer, rubric) == value
            assert parse(value, rubric) == value
            assert parse(json.dumps({"grade": answer}), rubric) == value
            assert answer in json.dumps(reply_schema(rubric))


def test_never_right_where_the_reference_parser_is_wrong(golden: Callable) -> None:
    """The reference parser reads "NOT_ATTEMPTED" as A and both other labels as C; ours agrees only on clear letters."""
    arrays = golden("simpleqa")
    letters = dict(zip("ABC", LABELS, strict=True))
    for string, letter in zip(arrays["parser_strings"].tolist(), arrays["parser_letters"].tolist(), strict=True):
        mine = parse(string, LABEL)
        if string.strip() in letters:
            assert mine == letters[letter]
        if string.strip() in LABELS:
            assert mine == string.strip() != letters[letter]
