"""A judge's ratings against readers': figures by hand and against scikit-learn, files, what is stored and shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

import harness
from harness.commands import calibrate as program
from harness.commands.calibrate import calibrate_ratings
from harness.judges.match import MatchJudge
from harness.judges.ratings import RatedText, compare_ratings, holds_ratings, read_rated
from harness.judges.trust import calibration_of, keep, of_rubrics, rating_figures
from harness.types import Verdict

RUBRIC = "axbench_fluency"
ROW = {"question": "Why?", "gold": "rivers", "answer": "Because of water.", "ratings": {RUBRIC: [1, 2]}}


def rated(readers: Sequence[Sequence[int]], questions: int = 0) -> list[RatedText]:
    """One text per column of the readers' ratings; every text has a question of its own, or several share one."""
    return [
        RatedText(f"{number % questions if questions else number}?", "rivers", f"text {number}", {RUBRIC: tuple(given)})
        for number, given in enumerate(zip(*readers, strict=True))
    ]


def verdicts(ratings: Sequence[int | None]) -> list[Verdict]:
    return [Verdict(None if rating is None else str(rating), "too long") for rating in ratings]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


def test_hand_worked() -> None:
    # One reader says 0, 1, 2, 2 and the judge 0, 2, 1, 0: squared distances 0, 1, 1, 4, mean 6/4. By chance, with the
    # reader's shares 1/4, 1/4, 1/2 and the judge's 1/2, 1/4, 1/4, the mean is
    # 1/4 (1/4 + 4/4) + 1/4 (1/2 + 1/4) + 1/2 (4/2 + 1/4) = 13/8. Kappa is 1 less the ratio of the two.
    table = compare_ratings(RUBRIC, rated([[0, 1, 2, 2]]), verdicts([0, 2, 1, 0]))
    assert table.judge.value == pytest.approx(1 - (6 / 4) / (13 / 8))
    assert table.error.value == pytest.approx((0 + 1 - 1 - 2) / 4)
    assert table.readers is None
    assert table.means == {"0": (1.0, 2), "1": (2.0, 1), "2": (1.0, 1)}


def test_kappa_is_that_of_scikit_learn_averaged_over_readers() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(3, size=90)
    second = np.clip(first + rng.integers(-1, 2, size=90), 0, 2)
    judge = np.clip(first + rng.integers(-1, 2, size=90), 0, 2)
    table = compare_ratings(RUBRIC, rated([first.tolist(), second.tolist()]), verdicts(judge.tolist()))

    with_each = [cohen_kappa_score(reader, judge, weights="quadratic") for reader in (first, second)]
    assert table.judge.value == pytest.approx(np.mean(with_each))
    assert table.readers is not None
    assert table.readers.value == pytest.approx(cohen_kappa_score(first, second, weights="quadratic"))
    assert table.ranks.value == pytest.approx(spearmanr((first + second) / 2, judge)[0])
    low, high = table.judge.low, table.judge.high
    assert low is not None
    assert high is not None
    assert low < np.mean(with_each) < high


def test_texts_to_one_question_are_drawn_together() -> None:
    ratings, judge = [0, 1, 2, 2, 1, 0] * 6, [0, 1, 2, 2, 1, 2] * 6
    alone = compare_ratings(RUBRIC, rated([ratings]), verdicts(judge))
    together = compare_ratings(RUBRIC, rated([ratings], questions=6), verdicts(judge))
    assert together.num_questions == 6
    assert alone.judge.value == together.judge.value
    assert (alone.judge.low, alone.judge.high) != (together.judge.low, together.judge.high)


def test_the_expected_rating_breaks_ties_of_ranks_alone() -> None:
    given = [Verdict("1", expected=expected) for expected in (0.6, 0.9, 1.2, 1.4)]
    table = compare_ratings(RUBRIC, rated([[0, 1, 1, 2]]), given)
    assert table.ranks.value == pytest.approx(spearmanr([0, 1, 1, 2], [0.6, 0.9, 1.2, 1.4])[0])
    assert table.error.value == pytest.approx(0), "the rating itself is 1 everywhere"


def test_texts_without_a_rating_are_counted_and_enter_nothing() -> None:
    table = compare_ratings(RUBRIC, rated([[0, 1, 2, 0]]), verdicts([0, 1, 2, None]))
    assert (table.num_texts, table.num_unscored) == (4, 1)
    assert table.judge.value == pytest.approx(1)
    with pytest.raises(ValueError, match="gave no text a rating for axbench_fluency: too long"):
        compare_ratings(RUBRIC, rated([[0, 1]]), verdicts([None, None]))


def test_a_judge_that_always_says_the_same_has_no_rank_and_no_kappa() -> None:
    table = compare_ratings(RUBRIC, rated([[0, 1, 2, 0]]), verdicts([1, 1, 1, 1]))
    assert table.ranks.value is None
    assert table.judge.value == pytest.approx(0)


class TestFiles:
    """What a file of rated texts must hold."""

    def test_ratings_are_told_from_labels(self, tmp_path: Path) -> None:
        path = write(tmp_path / "rated.jsonl", [ROW, ROW])
        assert holds_ratings(path)
        assert [text.ratings for text in read_rated(path)] == [{RUBRIC: (1, 2)}] * 2
        assert not holds_ratings(write(tmp_path / "labelled.jsonl", [{"question": "?", "label": "CORRECT"}]))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ratings": {RUBRIC: [3, 0]}}, r"line 2: ratings of axbench_fluency are 0 to 2, got \[3, 0\]"),
            ({"ratings": {RUBRIC: [True, 1]}}, "must be a list of whole numbers"),
            ({"ratings": {RUBRIC: []}}, "must be a list of whole numbers"),
            ({"ratings": {"simpleqa": [1, 1]}}, "no rubric 'simpleqa' with ratings; there are accuracy"),
            ({"ratings": {RUBRIC: [1]}}, "rated text 2: every text needs ratings by the same rubrics"),
            ({"ratings": []}, "ratings must map rubrics to lists of numbers"),
            ({"gold": None}, "gold must be a text"),
        ],
    )
    def test_a_row_that_is_wrong_is_named(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read_rated(write(tmp_path / "rated.jsonl", [ROW, {**ROW, **change}]))

    def test_no_texts_are_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds no rated texts"):
            read_rated(write(tmp_path / "rated.jsonl", []))


def test_a_judge_that_does_not_know_the_rubric_is_refused() -> None:
    with pytest.raises(ValueError, match="does not grade the rubric axbench_fluency; it grades"):
        calibrate_ratings(MatchJudge(), rated([[0, 1]]))


def test_the_shipped_texts_are_rated_by_two_readers_who_agree() -> None:
    texts = read_rated(Path(harness.__file__).parent / "judges" / "data" / "steered_texts.jsonl")
    assert len(texts) == 120
    for rubric in ("axbench_concept", "axbench_instruct", "axbench_fluency"):
        first = [Verdict(str(text.ratings[rubric][0])) for text in texts]
        table = compare_ratings(rubric, texts, first)
        assert table.num_readers == 2
        assert table.readers is not None
        assert table.readers.value is not None
        assert table.readers.value > 0.8
        assert {text.ratings[rubric][0] for text in texts} == {0, 1, 2}


class TestStored:
    """What is kept of a judge, and what stands beside a score."""

    def figures(self, readers: Sequence[int], judge: Sequence[int]) -> dict[str, Any]:
        return rating_figures(compare_ratings(RUBRIC, rated([readers]), verdicts(judge)), "hash", "command")

    def test_ratings_are_kept_beside_labels_and_say_nothing_about_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
        good = self.figures([0, 1, 2] * 10, [0, 1, 2] * 10)
        keep("somebody v1", {}, {RUBRIC: good})
        known = calibration_of("somebody v1")
        assert known["mark"] == "not calibrated", "of labels of answers nothing is known"
        assert of_rubrics(known, [RUBRIC])["mark"] == "trustworthy"
        assert of_rubrics(known, [RUBRIC, "axbench_concept"])["mark"] == "not calibrated"

        keep("somebody v1", {}, {"axbench_concept": self.figures([0, 1, 2] * 10, [2, 1, 0] * 10)})
        assert of_rubrics(calibration_of("somebody v1"), [RUBRIC])["mark"] == "trustworthy", "the first one stays"
        worst = of_rubrics(calibration_of("somebody v1"), [RUBRIC, "axbench_concept"])
        assert (worst["mark"], worst["kappa"]) == ("not trustworthy", pytest.approx(-1))

    def test_the_command_measures_a_file_with_a_real_judge(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = [
            {**ROW, "answer": f"text {n}", "question": f"{n}?", "ratings": {RUBRIC: [n % 3, n % 2]}} for n in range(9)
        ]
        path = write(tmp_path / "mine.jsonl", rows)
        judge = ("judge=local", "model@judge.model=tiny", f"judge.cache={tmp_path / 'replies.sqlite'}")
        into = tmp_path / "judges.json"
        assert program.main([*judge, f"data={path}", "--into", str(into)]) == 0
        shown = capsys.readouterr().out
        assert "mine: 9 texts to 9 questions, 2 readers" in shown
        assert "axbench_fluency, readers' mean where the judge said" in shown

        ((identity, known),) = json.loads(into.read_text()).items()
        assert known["ratings"][RUBRIC] == calibration_of(identity)["ratings"][RUBRIC]
        assert known["ratings"][RUBRIC]["num_texts"] == 9
        assert "data=mine.jsonl" in known["ratings"][RUBRIC]["command"], "the file's place is nobody's business"

    def test_a_mistake_in_the_file_ends_the_command_in_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write(tmp_path / "mine.jsonl", [{**ROW, "ratings": {RUBRIC: [5]}}])
        assert program.main(["judge=match", f"data={path}"]) == 2
        error = capsys.readouterr().err
        assert "ratings of axbench_fluency are 0 to 2" in error
        assert error.count("\n") == 1
