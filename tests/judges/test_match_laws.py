"""Laws of the rule judge over whole data sets: what must be right or wrong whatever the question.

The data lie beside the repository; rows are drawn by a seed, so that failures can be found again.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable
from datetime import date
from functools import cache
from pathlib import Path

import pytest

from harness.judges.match import MatchJudge
from harness.types import Grading

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
ROWS = 400
RANGE = re.compile(r"\s*\(acceptable range:.*")
WRITTEN = re.compile(r"(?:(\w+) (\d{1,2})|(\d{1,2}) (\w+)),? (\d{4})")
MONTHS = [date(2000, month, 1).strftime("%B") for month in range(1, 13)]

Row = tuple[str, str, tuple[str, ...]]
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the data sets are not beside the repository")


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").split("\n") if line]


def table(name: str) -> list[dict]:
    with (DATA / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@cache
def rows(name: str) -> list[Row]:
    """Question, gold and aliases of every row."""
    if name == "nq_open":
        rows = lines("nq_open/NQ-open.dev.jsonl")
        return [(row["question"], row["answer"][0], tuple(row["answer"][1:])) for row in rows]
    if name == "triviaqa":
        return [(row["question"], row["answer"], tuple(row["aliases"])) for row in lines("triviaqa/validation.jsonl")]
    file = {"simpleqa": "simple_qa_test_set.csv", "simpleqa_verified": "simpleqa_verified.csv"}[name]
    return [(row["problem"], row["answer"], ()) for row in table(f"{name}/{file}")]


def drawn(name: str) -> list[Row]:
    return random.Random(0).sample(rows(name), ROWS)


def share_correct(gradings: list[Grading]) -> tuple[float, list[Grading]]:
    """The share graded correct, and which were not."""
    verdicts = MatchJudge().grade(gradings)
    wrong = [grading for grading, verdict in zip(gradings, verdicts, strict=True) if verdict.value != "CORRECT"]
    return 1 - len(wrong) / len(gradings), wrong


def ask(row: Row, answer: str) -> Grading:
    return Grading("simpleqa", row[0], row[1], row[2], answer)


SETS = ("simpleqa", "simpleqa_verified", "triviaqa", "nq_open")
SENTENCES: dict[str, Callable[[str], str]] = {
    "verbatim": lambda gold: gold,
    "in a sentence": lambda gold: f"The answer is {gold.rstrip('.')}.",
    "with words around it": lambda gold: f"I believe it was {gold.rstrip('.')}, as far as I know.",
}


@pytest.mark.parametrize("form", SENTENCES)
@pytest.mark.parametrize("name", SETS)
def test_the_gold_is_correct(name: str, form: str) -> None:
    share, refused = share_correct([ask(row, SENTENCES[form](RANGE.sub("", row[1]))) for row in drawn(name)])
    assert share >= (1 if form != "with words around it" else 0.995), refused[:3]


@pytest.mark.parametrize("name", ["triviaqa", "nq_open"])
def test_every_alias_is_correct(name: str) -> None:
    share, refused = share_correct([ask(row, alias) for row in drawn(name) for alias in row[2][:20]])
    assert share == 1, refused[:3]


@pytest.mark.parametrize("name", SETS)
def test_another_questions_gold_is_not_correct(name: str) -> None:
    picked = drawn(name)
    others = [RANGE.sub("", row[1]) for row in picked[1:] + picked[:1]]
    accepted = ({form.lower() for form in (RANGE.sub("", row[1]), *row[2])} for row in picked)
    foreign = [
        ask(row, other) for row, other, own in zip(picked, others, accepted, strict=True) if other.lower() not in own
    ]
    assert len(foreign) > ROWS * 0.98
    share, _ = share_correct(foreign)
    assert share <= 0.0055, "two of 400: that many have the same content in other words, such as three and 3"


@pytest.mark.parametrize("name", SETS)
def test_an_echo_of_the_question_is_not_correct(name: str) -> None:
    share, _ = share_correct([ask(row, row[0]) for row in drawn(name)])
    assert share == 0
    share, _ = share_correct([ask(row, f"{row[0]} {row[0]}") for row in drawn(name)])
    assert share == 0


def dated() -> list[tuple[Row, date]]:
    """Rows of all sets whose gold is a full date."""
    misses = []
    for name in ("simpleqa", "nq_open"):
        for row in rows(name):
            match = WRITTEN.fullmatch(row[1].strip())
            month = match and (match[1] or match[4])
            if match and month in MONTHS:
                misses.append((row, date(int(match[5]), MONTHS.index(month) + 1, int(match[2] or match[3]))))
    return misses


FORMATS: dict[str, Callable[[date], str]] = {
    "month first": lambda day: f"{day:%B} {day.day}, {day.year}",
    "day first": lambda day: f"{day.day} {day:%B} {day.year}",
    "ordinal": lambda day: f"the {day.day}{ordinal(day.day)} of {day:%B}, {day.year}",
    "month first, ordinal": lambda day: f"{day:%B} {day.day}{ordinal(day.day)}, {day.year}",
    "shortened": lambda day: f"{day:%b}. {day.day}, {day.year}",
    "ISO": lambda day: day.isoformat(),
    "slashes, day first": lambda day: f"{day.day:02d}/{day.month:02d}/{day.year}",
    "slashes, month first": lambda day: f"{day.month}/{day.day}/{day.year}",
    "points": lambda day: f"{day.day}.{day.month}.{day.year}",
    "with a weekday": lambda day: f"It happened on {day:%A}, {day.day} {day:%B} {day.year}, in London.",
}


def ordinal(day: int) -> str:
    return {1: "st", 2: "nd", 3: "rd"}.get(day % 10 if day not in (11, 12, 13) else 0, "th")


@pytest.mark.parametrize("form", FORMATS)
def test_usual_formats_of_a_date_are_correct_and_another_year_is_not(form: str) -> None:
    picked = random.Random(1).sample(dated(), 150)
    share, refused = share_correct([ask(row, FORMATS[form](day)) for row, day in picked])
    assert share == 1, refused[:3]
    later = [(row, day.replace(year=day.year + 1, day=min(day.day, 28))) for row, day in picked]
    other = [(row, day) for row, day in later if not any(str(day.year) in alias for alias in row[2])]
    share, _ = share_correct([ask(row, FORMATS[form](day)) for row, day in other])
    assert share == 0


def test_a_given_name_from_a_surname_first_alias_is_not_enough() -> None:
    reversed_name = re.compile(r"([A-Z]\w+), ([A-Z]\w+)")
    people = []
    for row in rows("triviaqa"):
        for match in filter(None, map(reversed_name.fullmatch, row[2])):
            bare = {re.sub(r"\W*\(.*", "", form).lower() for form in (row[1], *row[2])}
            if match[2].lower() not in bare:
                people.append(ask(row, f"{match[2]} Zimmerwald"))
    assert len(people) > 1_000
    share, _ = share_correct(people)
    assert share <= 0.06, "aliases such as 'President Barack' and 'Leicester, Leicestershire' are what is left"
