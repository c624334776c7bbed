"""The labelled answers that judges are calibrated on: complete, well-formed, a third of them set aside."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from harness.judges.agreement import load_items

DATA = Path(__file__).resolve().parents[2] / "harness" / "judges" / "data"
LABELS = {"CORRECT", "INCORRECT", "NOT_ATTEMPTED"}
KEYS = {"id", "kind", "question", "gold", "aliases", "answer", "label", "model", "steered", "note"}

Row = dict[str, Any]


def load(name: str) -> list[Row]:
    """The rows of one file."""
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def opened() -> list[Row]:
    """The part that rules may be written on."""
    return load("calibration.jsonl")


@pytest.fixture(scope="module")
def held() -> list[Row]:
    """The part set aside."""
    return load("calibration_heldout.jsonl")


@pytest.fixture(scope="module")
def new() -> list[Row]:
    """Also set aside: answers to questions that the open part does not ask."""
    return load("new_questions_heldout.jsonl")


@pytest.fixture(scope="module")
def rows(opened: list[Row], held: list[Row]) -> list[Row]:
    """Both parts of the answers to one set of questions."""
    return opened + held


def test_rows_have_the_documented_keys_and_types(rows: list[Row], new: list[Row]) -> None:
    for row in rows + new:
        assert set(row) - {"quality"} == KEYS, row["id"]
        texts = [row[key] for key in ("id", "question", "gold", "answer", "model", "note")]
        assert all(isinstance(text, str) for text in texts), row["id"]
        assert "?" in row["question"], row["id"]
        assert row["gold"].strip(), row["id"]
        assert isinstance(row["aliases"], list), row["id"]
        assert all(isinstance(alias, str) and alias.strip() for alias in row["aliases"]), row["id"]
        assert isinstance(row["steered"], bool), row["id"]
        assert row["kind"] == ("new question" if row in new else "generated"), row["id"]
        assert row["label"] in LABELS, row["id"]


def test_ids_are_unique_and_in_one_part_only(rows: list[Row], new: list[Row]) -> None:
    assert [name for name, count in Counter(row["id"] for row in rows + new).items() if count > 1] == []


def test_new_questions_ask_for_facts_that_rules_were_not_written_on(opened: list[Row], new: list[Row]) -> None:
    seen = opened + load("hard_cases.jsonl")
    assert len(new) >= 80
    assert {row["question"] for row in new}.isdisjoint(row["question"] for row in seen)
    assert {row["gold"].lower() for row in new}.isdisjoint(row["gold"].lower() for row in seen)


def test_no_answer_of_a_model_is_there_twice(rows: list[Row]) -> None:
    counts = Counter((row["model"], row["question"], row["answer"]) for row in rows)
    assert [key for key, count in counts.items() if count > 1] == []


def test_one_question_has_one_gold(rows: list[Row]) -> None:
    golds = defaultdict(set)
    for row in rows:
        golds[row["question"]].add((row["gold"], *row["aliases"]))
    assert [question for question, answers in golds.items() if len(answers) > 1] == []


def test_a_third_of_every_model_and_label_is_set_aside(opened: list[Row], held: list[Row]) -> None:
    open_counts = Counter((row["model"], row["label"]) for row in opened)
    held_counts = Counter((row["model"], row["label"]) for row in held)
    for stratum in open_counts | held_counts:
        total = open_counts[stratum] + held_counts[stratum]
        assert held_counts[stratum] == (total + 1) // 3, stratum


def test_the_part_set_aside_follows_from_the_ids(rows: list[Row], held: list[Row]) -> None:
    strata = defaultdict(list)
    for row in rows:
        strata[row["model"], row["label"]].append(row["id"])
    chosen: set[str] = set()
    for names in strata.values():
        names.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        chosen.update(names[1::3])
    assert chosen == {row["id"] for row in held}


def test_at_least_300_answers_cover_models_labels_and_steering(rows: list[Row]) -> None:
    assert len(rows) >= 300
    assert {row["model"] for row in rows} >= {
        *(m + "-Instruct" for m in ("SmolLM2-135M", "Qwen2.5-Coder-0.5B", "Qwen2.5-Coder-1.5B")),
        "Gemma-3-270m",
    }
    assert all(count >= 60 for count in Counter(row["label"] for row in rows).values())
    assert sum(row["steered"] for row in rows) >= 100
    assert sum(not row["steered"] for row in rows) >= 100


def test_a_hundred_answers_carry_a_quality_score(rows: list[Row]) -> None:
    scores = [row["quality"] for row in rows if "quality" in row]
    assert len(scores) >= 100
    assert set(scores) == {1, 2, 3, 4, 5}


def test_the_judges_calibration_loads_every_row(rows: list[Row], new: list[Row]) -> None:
    loaded = {item.id: item for part in ("open", "held-out") for item in load_items(part)}
    for row in rows + new:
        item = loaded[row["id"]]
        assert (item.answer, item.label, item.quality) == (row["answer"], row["label"], row.get("quality"))
