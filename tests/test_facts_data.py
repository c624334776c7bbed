"""Checks on the facts question set.

Every rule that the data file promises and that a program can check is checked here: the keys and their types, the
counts per topic, answer type and split, and the rules that keep the accepted answers and the distractors apart.
"""

import json
import re
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

DATA_PATH: Path = Path(__file__).parents[1] / "harness/tasks/facts.jsonl"
KEYS: set[str] = {"id", "question", "answer", "aliases", "distractors", "topic", "answer_type", "split"}
TOPICS: set[str] = {
    "geography",
    "history",
    "science",
    "technology",
    "arts",
    "music",
    "sports",
    "literature",
    "film_tv",
    "nature",
}
ANSWER_TYPES: set[str] = {"Person", "Date", "Number", "Place", "Other"}
ITEMS_PER_TOPIC: int = 36
SPLIT_SIZES: dict[str, int] = {"train": 12, "dev": 6, "test": 18}
MIN_ITEMS: int = 360
MIN_PER_TYPE: int = 4


def load_items() -> list[dict[str, Any]]:
    """Reads all items of the data file, in file order."""
    with DATA_PATH.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


ITEMS: list[dict[str, Any]] = load_items()


def normalise(text: str) -> str:
    """Lowercases a text and collapses white space."""
    return re.sub(r"\s+", " ", text.casefold()).strip()


def contains(text: str, part: str) -> bool:
    """Says whether `part` occurs in `text` as whole words."""
    pattern = rf"(?<!\w){re.escape(normalise(part))}(?!\w)"
    return re.search(pattern, normalise(text)) is not None


def accepted(item: dict[str, Any]) -> list[str]:
    """Returns the answer and all its aliases."""
    return [item["answer"], *item["aliases"]]


def date_format(text: str) -> str | None:
    """Names the date format a text is written in, or returns None when it is not a date.

    The formats are "day" (20 July 1969), "day_of_year" (4 July), "month" (June), "year" (1969) and "era" (AD 79).
    """
    if re.fullmatch(r"[1-9]\d{3}", text) or re.fullmatch(r"[1-9]\d{2}", text):
        return "year"
    if re.fullmatch(r"AD [1-9]\d{0,3}", text):
        return "era"
    # A leap year is added where the year is missing, so that 29 February parses.
    for name, candidate, pattern in (
        ("day", text, "%d %B %Y"),
        ("day_of_year", f"{text} 2000", "%d %B %Y"),
        ("month", f"1 {text} 2000", "%d %B %Y"),
    ):
        try:
            datetime.strptime(candidate, pattern)
        except ValueError:
            continue
        return name
    return None


def number(text: str) -> float:
    """Parses a number that may have thousands separators."""
    return float(text.replace(",", ""))


def params() -> list[Any]:
    """Returns one pytest parameter per item, named by the item's id."""
    return [pytest.param(item, id=str(item.get("id"))) for item in ITEMS]


def test_count() -> None:
    """There are enough items."""
    assert len(ITEMS) >= MIN_ITEMS


def test_lines_are_plain() -> None:
    """The file ends with one newline and has no blank lines or stray white space."""
    text = DATA_PATH.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    for line in text.removesuffix("\n").split("\n"):
        assert line == line.strip()
        assert line
        assert not any(character in line for character in "\u2028\u2029\u00a0\ufeff\r")


def test_ids_are_unique_and_in_order() -> None:
    """Ids count up from facts-0001 without gaps."""
    assert [item["id"] for item in ITEMS] == [f"facts-{index:04d}" for index in range(1, len(ITEMS) + 1)]


def test_questions_are_unique() -> None:
    """No two questions are alike, whatever their case and punctuation."""
    counts = Counter(re.sub(r"[^\w ]", "", normalise(item["question"])) for item in ITEMS)
    assert [question for question, count in counts.items() if count > 1] == []


def test_topics_are_complete_and_equal() -> None:
    """All topics have the same number of items, and there are no other topics."""
    assert Counter(item["topic"] for item in ITEMS) == dict.fromkeys(TOPICS, ITEMS_PER_TOPIC)


def test_splits_are_equal_in_every_topic() -> None:
    """Each topic is divided over the splits in the same way."""
    counts = Counter((item["topic"], item["split"]) for item in ITEMS)
    assert counts == {(topic, split): size for topic in TOPICS for split, size in SPLIT_SIZES.items()}


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_types_are_balanced_in_every_topic(topic: str) -> None:
    """Within a topic, each answer type has about a fifth of the items."""
    counts = Counter(item["answer_type"] for item in ITEMS if item["topic"] == topic)
    assert set(counts) == ANSWER_TYPES
    assert min(counts.values()) >= MIN_PER_TYPE
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("topic", sorted(TOPICS))
def test_types_are_mixed_in_every_split(topic: str) -> None:
    """Within a topic, each split holds each answer type in nearly its fair share."""
    for split, size in SPLIT_SIZES.items():
        counts = Counter(item["answer_type"] for item in ITEMS if (item["topic"], item["split"]) == (topic, split))
        assert set(counts) == ANSWER_TYPES, split
        for answer_type, count in counts.items():
            assert abs(count - size / len(ANSWER_TYPES)) <= 1, (split, answer_type)


@pytest.mark.parametrize("item", params())
def test_keys_and_values(item: dict[str, Any]) -> None:
    """An item has exactly the promised keys, with tidy values of the promised kinds."""
    assert set(item) == KEYS
    assert all(isinstance(item[key], str) and item[key] for key in KEYS - {"aliases", "distractors"})
    assert re.fullmatch(r"facts-\d{4}", item["id"])
    assert item["topic"] in TOPICS
    assert item["answer_type"] in ANSWER_TYPES
    assert item["split"] in SPLIT_SIZES
    for key in ("aliases", "distractors"):
        assert isinstance(item[key], list)
        assert all(isinstance(value, str) and value for value in item[key])
    for text in (item["question"], *accepted(item), *item["distractors"]):
        assert text == re.sub(r"\s+", " ", text).strip()


@pytest.mark.parametrize("item", params())
def test_question(item: dict[str, Any]) -> None:
    """A question is one sentence that does not give its own answer away."""
    question = item["question"]
    assert question.endswith("?")
    assert question.count("?") == 1
    assert question[0].isupper()
    for form in accepted(item):
        assert not contains(question, form), form


@pytest.mark.parametrize("item", params())
def test_aliases(item: dict[str, Any]) -> None:
    """The answer and its aliases are all different."""
    forms = [normalise(form) for form in accepted(item)]
    assert len(set(forms)) == len(forms)


@pytest.mark.parametrize("item", params())
def test_distractors(item: dict[str, Any]) -> None:
    """There are three different distractors, and none contains, or is part of, an accepted answer."""
    distractors = item["distractors"]
    assert len(distractors) == 3
    assert len({normalise(distractor) for distractor in distractors}) == 3
    for distractor in distractors:
        for form in accepted(item):
            assert not contains(distractor, form), (distractor, form)
            assert not contains(form, distractor), (distractor, form)


@pytest.mark.parametrize("item", [param for param in params() if param.values[0]["answer_type"] == "Date"])
def test_dates(item: dict[str, Any]) -> None:
    """Date answers parse, their distractors have the same format, and full dates have the other usual forms."""
    answer = item["answer"]
    form = date_format(answer)
    assert form is not None
    assert {date_format(distractor) for distractor in item["distractors"]} == {form}
    if form in ("day", "day_of_year"):
        day, month, *year = answer.split()
        assert ", ".join([f"{month} {day}", *year]) in item["aliases"]
    if form == "day":
        assert datetime.strptime(answer, "%d %B %Y").date().isoformat() in item["aliases"]


@pytest.mark.parametrize("item", [param for param in params() if param.values[0]["answer_type"] == "Number"])
def test_numbers(item: dict[str, Any]) -> None:
    """Number answers are digits with a different value from each distractor, and small ones are also spelled out."""
    values = [number(text) for text in (item["answer"], *item["distractors"])]
    assert len(set(values)) == len(values)
    if values[0].is_integer() and 0 <= values[0] <= 100:
        assert any(re.fullmatch(r"[a-z-]+(?: [a-z-]+)*", alias) for alias in item["aliases"])


@pytest.mark.parametrize(
    "item", [param for param in params() if param.values[0]["answer_type"] in {"Person", "Place", "Other"}]
)
def test_words_are_not_numbers(item: dict[str, Any]) -> None:
    """Answers and distractors of the remaining types are words."""
    for text in (item["answer"], *item["distractors"]):
        assert re.search(r"[^\W\d_]", text), text
