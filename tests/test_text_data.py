"""Mechanical checks of the text data: sentiment rows, behaviour items and judge hard cases."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SENTIMENT = ROOT / "harness" / "tasks" / "sentiment.jsonl"
BEHAVIORS = ROOT / "harness" / "tasks" / "behaviors.jsonl"
HARD = ROOT / "harness" / "judges" / "data" / "hard_cases.jsonl"
HELDOUT = ROOT / "harness" / "judges" / "data" / "hard_cases_heldout.jsonl"

BEHAVIOR_NAMES = ("sycophancy", "refusal", "optimism", "formality")
HARD_KINDS = (
    "hedge",
    "negation",
    "partial",
    "number",
    "date",
    "candidates",
    "language",
    "loop",
    "typo",
    "format",
    "abstention",
)
LABELS = {"CORRECT", "INCORRECT", "NOT_ATTEMPTED"}

Row = dict[str, Any]


def load(path: Path) -> list[Row]:
    """Read a JSON Lines file and insist that every line holds one object."""
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert isinstance(row, dict)
        rows.append(row)
    return rows


def words(text: str) -> int:
    """Count the words of a text, split at white space."""
    return len(text.split())


def assert_distinct(values: list[str]) -> None:
    """Fail with the repeated values, compared without case or outer space."""
    counts = Counter(value.strip().lower() for value in values)
    assert [value for value, n in counts.items() if n > 1] == []


@pytest.mark.parametrize("path", [SENTIMENT, BEHAVIORS, HARD, HELDOUT], ids=lambda path: path.stem)
def test_file_is_clean(path: Path) -> None:
    """No blank lines, no repeated ids, one final line break, no stray space in the strings."""
    raw = path.read_text(encoding="utf-8")
    assert raw.endswith("\n")
    assert not raw.endswith("\n\n")
    rows = load(path)
    assert_distinct([row["id"] for row in rows])
    for row in rows:
        for key, value in row.items():
            if isinstance(value, str):
                assert value == value.strip(), (row["id"], key)
                assert value or key == "answer", (row["id"], key)


def test_sentiment_texts() -> None:
    """Sixty texts of each role in train and sixteen in dev, all of a moderate length."""
    rows = [row for row in load(SENTIMENT) if row["kind"] == "text"]
    expected = {
        (role, split): n for role in ("source", "target", "control") for split, n in (("train", 60), ("dev", 16))
    }
    assert Counter((row["role"], row["split"]) for row in rows) == expected
    assert_distinct([row["text"] for row in rows])
    for row in rows:
        assert set(row) == {"id", "kind", "role", "text", "split"}
        assert 12 <= words(row["text"]) <= 30, row["id"]
        assert row["text"][0].isupper(), row["id"]
        assert row["text"].endswith("."), row["id"]


def test_sentiment_prompts() -> None:
    """Prompt counts per role and split, and the fields each role fills."""
    rows = [row for row in load(SENTIMENT) if row["kind"] == "prompt"]
    assert len(rows) + 228 == len(load(SENTIMENT))
    assert Counter((row["role"], row["split"]) for row in rows) == {
        ("source", "dev"): 24,
        ("control", "dev"): 12,
        ("source", "test"): 60,
        ("control", "test"): 40,
    }
    assert_distinct([row["prompt"] for row in rows])

    for row in rows:
        assert set(row) == {"id", "kind", "role", "prompt", "positive", "negative", "reference", "split"}
        assert row["prompt"][-1] not in ".!?", row["id"]
        if row["role"] == "source":
            assert row["reference"] is None
            assert row["positive"] != row["negative"]
            assert abs(words(row["positive"]) - words(row["negative"])) <= 2, row["id"]
            assert row["positive"].endswith("."), row["id"]
            assert row["negative"].endswith("."), row["id"]
        else:
            assert row["positive"] is None
            assert row["negative"] is None
            assert row["reference"].endswith("."), row["id"]


def test_behaviors() -> None:
    """Forty, twelve and twenty-eight items per behaviour, with two options of similar length."""
    rows = load(BEHAVIORS)
    sizes = {"train": 40, "dev": 12, "test": 28}
    expected = {(name, split): n for name in BEHAVIOR_NAMES for split, n in sizes.items()}
    assert Counter((row["behavior"], row["split"]) for row in rows) == expected
    assert_distinct([row["question"] for row in rows])

    for row in rows:
        assert set(row) == {"id", "behavior", "question", "matching", "not_matching", "split"}
        assert row["question"][-1] in ".?!", row["id"]
        assert row["matching"] != row["not_matching"]
        assert abs(words(row["matching"]) - words(row["not_matching"])) <= 5, row["id"]
        for option in (row["matching"], row["not_matching"]):
            assert re.match(r"\(?[AB]\)?[.):]", option) is None, row["id"]
            assert re.fullmatch(r"[^.!?]+[.!?]", option), row["id"]


@pytest.mark.parametrize("name", BEHAVIOR_NAMES)
def test_behavior_length_is_no_shortcut(name: str) -> None:
    """The matching option is on average neither much longer nor much shorter than the other one."""
    rows = [row for row in load(BEHAVIORS) if row["behavior"] == name]
    gaps = [words(row["matching"]) - words(row["not_matching"]) for row in rows]
    assert abs(sum(gaps) / len(gaps)) <= 2.0


@pytest.mark.parametrize("path", [HARD, HELDOUT], ids=lambda path: path.stem)
def test_hard_case_rows(path: Path) -> None:
    """Every hard case has the agreed keys, a known kind and label, and a reason."""
    for row in load(path):
        assert set(row) == {"id", "kind", "question", "gold", "aliases", "answer", "label", "note"}
        assert row["kind"] in (*HARD_KINDS, "injection"), row["id"]
        assert row["label"] in LABELS, row["id"]
        assert isinstance(row["aliases"], list)
        assert all(isinstance(alias, str) for alias in row["aliases"])
        assert row["gold"] not in row["aliases"], row["id"]
        assert row["answer"] or row["label"] == "NOT_ATTEMPTED", row["id"]


def test_hard_case_third_is_held_out() -> None:
    """Two thirds of each kind are open and one third is set aside, with no case in both files.

    Injections that were set aside once and then looked at are open now; 24 new ones took their place.
    """
    main, heldout = load(HARD), load(HELDOUT)
    assert len([row for row in main + heldout if row["kind"] != "injection"]) == 96

    open_kinds = Counter(row["kind"] for row in main)
    held_kinds = Counter(row["kind"] for row in heldout)
    assert set(open_kinds) == set(held_kinds) == {*HARD_KINDS, "injection"}
    assert (open_kinds["injection"], held_kinds["injection"]) == (33, 24)
    for kind in HARD_KINDS:
        assert open_kinds[kind] == 2 * held_kinds[kind], kind

    assert_distinct([row["id"] for row in main + heldout])
    assert_distinct([row["answer"] for row in main + heldout if row["answer"]])
    assert_distinct([row["question"] for row in main + heldout if row["kind"] != "injection"])
    for rows in (main, heldout):
        assert {row["label"] for row in rows} == LABELS


def test_injections_rarely_hold_the_answer() -> None:
    """Most injection answers are not correct; of the open ones, those labelled correct hold the gold, the others not.

    Some of those set aside are built otherwise: the gold stands in an order to the judge, or in other letters.
    """
    rows = [row for row in load(HARD) + load(HELDOUT) if row["kind"] == "injection"]
    assert sum(row["label"] == "CORRECT" for row in rows) <= len(rows) // 4
    for row in (row for row in load(HARD) if row["kind"] == "injection"):
        names = [row["gold"], *row["aliases"]]
        held = any(re.search(rf"\b{re.escape(name)}\b", row["answer"], re.IGNORECASE) for name in names)
        assert held == (row["label"] == "CORRECT"), row["id"]


def test_empty_answer_is_present() -> None:
    """The empty answer, a common output of a small model, is among the cases."""
    rows = load(HARD) + load(HELDOUT)
    assert [row["label"] for row in rows if row["answer"] == ""] == ["NOT_ATTEMPTED"]
