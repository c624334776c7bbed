"""Agreement by hand and against scikit-learn; intervals over questions; what is stored, and when a judge is trusted."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

import harness
from harness.commands import calibrate as program
from harness.commands.calibrate import calibrate, items_hash, sets_of_file, shipped_sets
from harness.judges.agreement import (
    SETS,
    WRONG,
    Item,
    Table,
    compare_labels,
    compare_scores,
    load_items,
    part_of,
    read_items,
)
from harness.judges.match import MatchJudge
from harness.judges.prompts import LABELS
from harness.judges.trust import calibration_of, keep, measured, set_figures
from harness.types import Grading, Judge, Verdict


def items(labels: Sequence[str], kind: str = "hedge") -> list[Item]:
    return [Item(str(i), kind, f"Where is {i}?", "Paris", (), f"answer {i}", label) for i, label in enumerate(labels)]


def verdicts(values: Sequence[str | None]) -> list[Verdict]:
    return [Verdict(value, reason="" if value else "none") for value in values]


@dataclass(eq=False)
class Fixed(Judge):
    """A judge that always says the same."""

    value: str | None
    rubrics: frozenset[str] = frozenset({"simpleqa", "quality"})
    identity: str = "fixed v1"

    def grade(self, gradings: Sequence[Grading]) -> list[Verdict]:
        return verdicts([self.value] * len(gradings))


def table_of(value: str | None, labels: Sequence[str]) -> Table:
    return calibrate(Fixed(value), items(labels))


def test_hand_worked() -> None:
    table = compare_labels(
        items([*LABELS] * 2), verdicts(["CORRECT", "INCORRECT", "NOT_ATTEMPTED", "CORRECT", "CORRECT", None])
    )
    assert table.num_unscored == 1
    assert table.confusion["INCORRECT"] == {"CORRECT": 1, "INCORRECT": 1, "NOT_ATTEMPTED": 0, "unscored": 0}
    assert table.confusion["NOT_ATTEMPTED"]["unscored"] == 1
    by_chance = (3 * 2 + 1 * 2 + 1 * 2) / 36
    assert table.labels is not None
    assert table.labels.value == pytest.approx((4 / 6 - by_chance) / (1 - by_chance))
    # correct or not: 2 and 2 of 6 agree, an unscored answer agrees with nothing
    by_chance = (2 * 3 + 4 * 2) / 36
    assert table.correct.value == pytest.approx((4 / 6 - by_chance) / (1 - by_chance))
    assert table.error.value == pytest.approx((3 - 2) / 6)


def test_kappa_equals_scikit_learn_and_lies_in_its_interval() -> None:
    rng = np.random.default_rng(0)
    people = rng.choice(LABELS, 200).tolist()
    judge = [label if rng.random() < 0.7 else str(rng.choice(LABELS)) for label in people]
    table = compare_labels(items(people), verdicts(judge))

    assert table.labels is not None
    assert table.labels.value == pytest.approx(cohen_kappa_score(people, judge))

    right = [label == "CORRECT" for label in people], [label == "CORRECT" for label in judge]
    assert table.correct.value == pytest.approx(cohen_kappa_score(*right))
    assert table.correct.value is not None
    assert table.correct.low is not None
    assert table.correct.high is not None
    assert table.correct.low < table.correct.value < table.correct.high
    assert table == compare_labels(items(people), verdicts(judge)), "the interval is seeded"


def test_answers_to_one_question_count_as_one_draw() -> None:
    """The same 40 answers five times over: five times as many answers, no more questions, the same interval."""
    rng = np.random.default_rng(1)
    people = ["CORRECT" if rng.random() < 0.5 else "INCORRECT" for _ in range(40)]
    judge = [label if rng.random() < 0.8 else "CORRECT" for label in people]
    once = compare_labels(items(people), verdicts(judge))
    often = compare_labels(items(people) * 5, verdicts(judge * 5))
    apart = [replace(item, question=f"{item.question} {copy}") for copy in range(5) for item in items(people)]
    spread = compare_labels(apart, verdicts(judge * 5))
    assert (often.num_items, often.num_questions) == (200, 40)
    assert often.correct == once.correct
    assert spread.correct.low is not None
    assert once.correct.low is not None
    assert spread.correct.low > once.correct.low, "answers to 200 questions tell more"


def test_the_error_by_length_is_seen() -> None:
    """A judge that agrees on 50 short answers and calls 50 long ones wrong, half of which are right."""
    alike = items(["CORRECT", WRONG] * 50)
    labelled = [replace(item, answer="word " * (1 if number < 50 else 40)) for number, item in enumerate(alike)]
    given = ["CORRECT" if item.is_correct and len(item.answer) < 10 else "INCORRECT" for item in labelled]
    table = compare_labels(labelled, verdicts(given))
    assert [fifth.words for fifth in table.fifths] == [1, 1, 20.5, 40, 40]
    assert [fifth.error for fifth in table.fifths] == pytest.approx([0, 0, -0.25, -0.5, -0.5])
    assert table.error_by_length == pytest.approx(0.5)
    assert table.error.value == pytest.approx(-0.25)


def test_labels_of_right_or_wrong_alone_have_no_third() -> None:
    table = compare_labels(items(["CORRECT", WRONG, WRONG]), verdicts(["CORRECT", "INCORRECT", "NOT_ATTEMPTED"]))
    assert table.labels is None
    assert table.correct.value == 1
    assert list(table.confusion) == ["CORRECT", WRONG]


def test_a_judge_that_always_says_the_same_agrees_no_more_than_chance() -> None:
    table = table_of("CORRECT", [*LABELS] * 5)
    assert table.correct.value == pytest.approx(0)
    assert measured("x", {"set": set_figures(table, "hash", "command")})["mark"] == "not trustworthy"


def test_full_agreement_on_one_label_alone_tells_nothing() -> None:
    table = compare_labels(items(["CORRECT"] * 5), verdicts(["CORRECT"] * 5))
    assert table.correct.value is None
    assert measured("x", {"set": set_figures(table, "hash", "command")})["mark"] == "not trustworthy"


def test_an_injection_is_followed_by_moving_an_answer_into_or_out_of_correct() -> None:
    attacks = items(["INCORRECT", "NOT_ATTEMPTED", "CORRECT", "INCORRECT", "NOT_ATTEMPTED"], kind="injection")
    table = compare_labels(attacks, verdicts(["CORRECT", "NOT_ATTEMPTED", "INCORRECT", "INCORRECT", "INCORRECT"]))
    assert (table.num_injections, table.injections_followed) == (5, 2)
    assert compare_labels(items(["CORRECT"]), verdicts(["CORRECT"])).injection_limits is None


def test_rank_correlation_equals_scipy_and_prefers_the_expected_score() -> None:
    quality = [1, 2, 3, 4, 5, 2, 4]
    rated = [Item(str(i), "hedge", f"{i}?", "g", (), "a", "CORRECT", quality=q) for i, q in enumerate(quality)]
    values = [1, 3, 2, 4, 5, 1, 5]

    plain = compare_scores(rated, verdicts([str(value) for value in values]))
    assert plain is not None
    assert plain.value == pytest.approx(np.asarray(spearmanr(quality, values)[0]).item())

    finer = compare_scores(rated, [Verdict("3", expected=0.5 * q) for q in quality])
    assert finer is not None
    assert finer.value == pytest.approx(1)

    constant = compare_scores(rated, verdicts(["3"] * 7))
    assert constant is not None
    assert constant.value is None
    assert compare_scores(rated[:2], verdicts(["3"] * 2)) is None


ROW = {"question": "Where?", "gold": "Paris", "aliases": ["City of Light"], "answer": "Paris"}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", "utf-8")
    return path


def test_a_file_of_labelled_answers_is_read_with_either_kind_of_label(tmp_path: Path) -> None:
    rows = [
        {**ROW, "label": "NOT_ATTEMPTED", "kind": "hedge"},
        {**ROW, "correct": True, "answer": "Paris\u2028 on two lines"},
        {**ROW, "correct": False, "system": "gpt", "aliases": []},
    ]
    items_read = read_items(write(tmp_path / "file.jsonl", rows))
    assert [item.label for item in items_read] == ["NOT_ATTEMPTED", "CORRECT", WRONG]
    assert [item.kind for item in items_read] == ["hedge", "generated", "gpt"]
    assert items_read[1].answer == "Paris\u2028 on two lines"
    assert items_read[0].aliases == ("City of Light",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"label": "RIGHT"},
            "line 1: label must be one of CORRECT, INCORRECT, NOT_ATTEMPTED, or correct true or false; got",
        ),
        ({"correct": "yes"}, "got 'yes'"),
        ({}, "got None"),
        ({"label": "CORRECT", "gold": None}, "gold must be a text"),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_items(write(tmp_path / "file.jsonl", [{**ROW, **change}]))


def test_a_file_is_measured_by_source_and_split_by_question(tmp_path: Path) -> None:
    rows = [{**ROW, "question": f"{i}?", "correct": True, "source": "NQ" if i % 2 else "TQ"} for i in range(40)]
    path = write(tmp_path / "judged.jsonl", rows)
    assert [one.name for one in sets_of_file(path)] == ["judged NQ", "judged TQ"]
    held, opened = sets_of_file(path, "held-out", "EVOUNA"), sets_of_file(path, "open")
    assert [one.name for one in held] == ["EVOUNA NQ (held-out)", "EVOUNA TQ (held-out)"]
    assert sum(len(one.items) for one in held + opened) == 40
    assert {part_of(item.question) for one in held for item in one.items} == {"held-out"}
    assert not any(one.is_decisive for one in opened), "rules may have been written while looking at it"
    with pytest.raises(ValueError, match="holds no labelled answers"):
        sets_of_file(write(tmp_path / "empty.jsonl", []))


def test_no_items_are_an_error() -> None:
    with pytest.raises(ValueError, match="no labelled answers"):
        compare_labels([], [])


def test_the_shipped_answers_are_enough() -> None:
    all_items = load_items("open") + load_items("held-out")
    assert sum(item.kind == "injection" for item in all_items) >= 50
    assert sum(item.kind not in ("injection", "generated") for item in all_items) >= 300
    assert len({item.id for item in all_items}) == len(all_items)
    for name in SETS:
        assert {item.label for item in load_items("held-out", name)} == set(LABELS)


def test_a_run_prints_stores_and_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    output = io.StringIO()
    judge = MatchJudge()
    program.run(judge, Console(file=output, width=120), shipped_sets())

    text = output.getvalue()
    for name in SETS:
        assert f"{name} (open)" in text
        assert f"{name} (held-out)" in text
    for heading in ("people say", "kappa, correct or not", "kappa, three labels", "injections followed", "by length"):
        assert heading in text

    stored = judge.calibration
    assert stored["judge"] == judge.identity
    assert stored["measured_on"] in stored["sets"]
    assert stored["mark"] in text
    assert all(name.endswith("(held-out)") for name in stored["sets"]), "the open part decides nothing"


def test_the_command_measures_a_file_and_keeps_what_was_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    rows = [
        {**ROW, "question": f"{i}?", "answer": "Paris" if i % 2 else "Lyon", "correct": bool(i % 2)} for i in range(20)
    ]
    path = write(tmp_path / "mine.jsonl", rows)
    assert program.main(["judge=match", f"data={path}"]) == 0
    assert "mine: 20 answers to 20 questions" in capsys.readouterr().out
    figures = MatchJudge().calibration["sets"]["mine"]
    assert figures["correct"]["value"] == 1
    assert str(tmp_path) not in json.dumps(figures), "the file's place is nobody's business"
    assert "EVOUNA NQ (held-out)" in MatchJudge().calibration["sets"], "shipped figures stay beside one's own"


def test_a_judge_that_nobody_calibrated_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    assert calibration_of("nobody v1") == {"judge": "nobody v1", "mark": "not calibrated"}
    keep("nobody v1", {"set": set_figures(table_of("CORRECT", [*LABELS] * 5), "hash", "command")})
    assert calibration_of("nobody v1")["mark"] == "not trustworthy"


def figures(low: float, short: float = 0.0, long: float = 0.0, size: int = 500) -> dict[str, Any]:
    fifths = [{"words": 1.0, "num_items": size, "error": error} for error in (short, 0, 0, 0, long)]
    interval = {"value": low + 0.1, "low": low, "high": low + 0.2}
    counts = {"num_items": 5 * size, "num_questions": size, "num_injections": 10, "injections_followed": 1}
    return {"correct": interval, "fifths": fifths, "error_by_length": abs(long - short), **counts}


def test_trust_needs_every_set_and_an_even_error() -> None:
    good, weak, uneven = figures(0.7), figures(0.55), figures(0.75, 0.0, -0.12)
    assert measured("x", {"a": good})["mark"] == "trustworthy"
    verdict = measured("x", {"a": good, "b": weak})
    assert (verdict["mark"], verdict["measured_on"], verdict["low"]) == ("not trustworthy", "b", 0.55)
    assert verdict["injection_success"] == pytest.approx(2 / 20)
    assert measured("x", {"a": good, "b": uneven})["mark"] == "not trustworthy"
    few = figures(0.75, 0.0, -0.12, size=30)
    assert measured("x", {"a": few})["mark"] == "trustworthy", "fifths of 30 answers decide nothing about length"


def test_the_command_line_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["judge=oracle"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "local" in error
    assert error.count("\n") == 1
    assert program.main(["judge=match", f"data={tmp_path / 'absent.jsonl'}"]) == 2
    assert "absent.jsonl" in capsys.readouterr().err


def test_the_shipped_calibration_of_the_rules_is_what_they_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    shipped = MatchJudge().calibration
    assert shipped["mark"] == "trustworthy"
    for one in shipped_sets():
        if one.is_decisive:
            figures = shipped["sets"][one.name]
            table = calibrate(MatchJudge(), one.items)
            assert figures["data"] == items_hash(one.items)
            assert figures["correct"]["value"] == pytest.approx(table.correct.value)
            assert figures["labels"]["low"] == pytest.approx(table.labels.low if table.labels else None)


EVOUNA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "evouna" / "judged.jsonl"


@pytest.mark.skipif(not EVOUNA.exists(), reason="EVOUNA is not beside the repository")
def test_the_shipped_figures_on_evouna_follow_from_the_file() -> None:
    """On questions that no rule was written on: people's labels, answers of five real systems."""
    for one in sets_of_file(EVOUNA, "held-out", "EVOUNA"):
        shipped = json.loads(program_data("calibrations.json"))[MatchJudge().identity]["sets"][one.name]
        table = calibrate(MatchJudge(), one.items)
        assert shipped["data"] == one.hash
        assert shipped["correct"]["value"] == pytest.approx(table.correct.value)
        assert shipped["error_by_length"] == pytest.approx(table.error_by_length)
        assert table.correct.low is not None
        assert table.correct.low >= 0.72
        assert max(abs(fifth.error) for fifth in table.fifths) <= 0.08


def program_data(name: str) -> str:
    return (Path(harness.__file__).parent / "judges" / "data" / name).read_text("utf-8")
