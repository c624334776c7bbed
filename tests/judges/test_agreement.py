"""Agreement figures by hand and against scikit-learn; what is stored, and when a judge is not trusted."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from harness import calibrate as program
from harness.calibrate import calibrate
from harness.judges.agreement import Item, compare_labels, compare_scores, load_items
from harness.judges.match import MatchJudge
from harness.judges.prompts import LABELS
from harness.judges.trust import calibration_of, keep, mark
from harness.types import Grading, Verdict


def items(labels: Sequence[str], kind: str = "hedge") -> list[Item]:
    return [Item(str(i), kind, "Where?", "Paris", (), f"answer {i}", label) for i, label in enumerate(labels)]


def verdicts(values: Sequence[str | None]) -> list[Verdict]:
    return [Verdict(value, reason="" if value else "none") for value in values]


@dataclass
class Fixed:
    """A judge that always says the same."""

    value: str | None
    rubrics: frozenset[str] = frozenset({"simpleqa", "quality"})
    identity: str = "fixed v1"

    def preflight(self) -> None:
        """Nothing to reach."""

    def grade(self, gradings: Sequence[Grading]) -> list[Verdict]:
        """The same verdict for each."""
        return verdicts([self.value] * len(gradings))


def test_hand_worked() -> None:
    found = compare_labels(
        items([*LABELS] * 2), verdicts(["CORRECT", "INCORRECT", "NOT_ATTEMPTED", "CORRECT", "CORRECT", None])
    )
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.num_unscored == 1
    assert found.confusion["INCORRECT"] == {"CORRECT": 1, "INCORRECT": 1, "NOT_ATTEMPTED": 0, "unscored": 0}
    assert found.confusion["NOT_ATTEMPTED"]["unscored"] == 1
    assert found.accuracy_per_label == {"CORRECT": 1, "INCORRECT": 0.5, "NOT_ATTEMPTED": 0.5}
    expected_by_chance = (3 * 2 + 1 * 2 + 1 * 2) / 36
    assert found.kappa == pytest.approx((4 / 6 - expected_by_chance) / (1 - expected_by_chance))


def test_kappa_equals_scikit_learn_and_lies_in_its_interval() -> None:
    rng = np.random.default_rng(0)
    people = rng.choice(LABELS, 200).tolist()
    judge = [label if rng.random() < 0.7 else str(rng.choice(LABELS)) for label in people]
    found = compare_labels(items(people), verdicts(judge))
    assert found.kappa == pytest.approx(cohen_kappa_score(people, judge))
    assert found.kappa is not None
    assert found.kappa_low is not None
    assert found.kappa_high is not None
    assert found.kappa_low < found.kappa < found.kappa_high
    assert found == compare_labels(items(people), verdicts(judge)), "the interval is seeded"


def test_a_judge_that_always_says_the_same_agrees_no_more_than_chance() -> None:
    found = calibrate(Fixed("CORRECT"), items([*LABELS] * 5))
    assert found.kappa == pytest.approx(0)
    assert mark(found.kappa_low) == "not trustworthy"


def test_full_agreement_on_one_label_alone_tells_nothing() -> None:
    found = compare_labels(items(["CORRECT"] * 5), verdicts(["CORRECT"] * 5))
    assert found.kappa is None
    assert mark(found.kappa_low) == "not trustworthy"


def test_an_injection_succeeds_by_moving_an_answer_into_or_out_of_correct() -> None:
    attacks = items(["INCORRECT", "NOT_ATTEMPTED", "CORRECT", "INCORRECT", "NOT_ATTEMPTED"], kind="injection")
    found = compare_labels(attacks, verdicts(["CORRECT", "NOT_ATTEMPTED", "INCORRECT", "INCORRECT", "INCORRECT"]))
    assert (found.num_injections, found.injection_success) == (5, 0.4)
    assert found.accuracy_per_kind["injection"] == (0.4, 5)
    assert compare_labels(items(["CORRECT"]), verdicts(["CORRECT"])).injection_success is None


def test_rank_correlation_equals_scipy_and_prefers_the_expected_score() -> None:
    quality = [1, 2, 3, 4, 5, 2, 4]
    rated = [Item(str(i), "hedge", "?", "g", (), "a", "CORRECT", quality=q) for i, q in enumerate(quality)]
    values = [1, 3, 2, 4, 5, 1, 5]
    plain = compare_scores(rated, verdicts([str(value) for value in values]))
    assert plain is not None
    assert plain["rho"] == pytest.approx(spearmanr(quality, values).statistic)
    assert plain["low"] <= plain["rho"] <= plain["high"]
    expected = [0.5 * q for q in quality]
    finer = compare_scores(rated, [Verdict("3", expected=value) for value in expected])
    assert finer is not None
    assert finer["rho"] == pytest.approx(1)
    assert compare_scores(rated, verdicts(["3"] * 7)) is None


def test_no_items_and_wrong_labels_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no labelled answers"):
        compare_labels([], [])
    row = {"id": "x", "kind": "hedge", "question": "?", "gold": "g", "aliases": [], "answer": "a", "label": "RIGHT"}
    (tmp_path / "hard_cases.jsonl").write_text(json.dumps(row), "utf-8")
    with pytest.raises(ValueError, match="x: label must be one of CORRECT"):
        load_items("open", tmp_path)
    assert load_items("held-out", tmp_path) == []


def test_the_shipped_answers_are_enough() -> None:
    every = load_items("open") + load_items("held-out")
    assert sum(item.kind == "injection" for item in every) >= 30
    assert sum(item.kind not in ("injection", "generated") for item in every) >= 60
    assert {item.label for item in load_items("held-out")} == set(LABELS)
    assert len({item.id for item in every}) == len(every)
    assert len(load_items("held-out")) >= 0.3 * len(every), "injections that were looked at went to the open part"


def test_the_rule_judge_on_the_open_part_and_against_injections_everywhere() -> None:
    found = calibrate(MatchJudge(), load_items("open"))
    assert found.kappa_low is not None
    assert found.kappa_low >= 0.6
    assert found.injection_success == 0


def test_a_run_prints_stores_and_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    output = io.StringIO()
    judge = MatchJudge()
    program.run(judge, Console(file=output, width=120))
    text = output.getvalue()
    for wanted in ("reader says", "Cohen's kappa", "injection success", "open part", "held-out part", judge.identity):
        assert wanted in text
    stored = judge.calibration
    assert stored["judge"] == judge.identity
    assert stored["part"] == "held-out"
    assert stored["mark"] in text


def test_a_judge_that_nobody_calibrated_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    assert calibration_of("nobody v1")["mark"] == "not calibrated"
    keep("nobody v1", {"mark": "trustworthy"})
    assert calibration_of("nobody v1")["mark"] == "trustworthy"


def test_the_command_line_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["judge=oracle"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "local" in error
    assert error.count("\n") == 1


def test_the_shipped_calibration_of_the_rules_is_what_they_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    shipped = MatchJudge().calibration
    found = calibrate(MatchJudge(), load_items("held-out"))
    assert shipped["kappa"] == pytest.approx(found.kappa)
    assert shipped["low"] == pytest.approx(found.kappa_low)
    assert shipped["mark"] == mark(found.kappa_low)
