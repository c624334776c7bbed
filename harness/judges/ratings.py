"""Agreement between a judge and readers who rated the same texts: weighted kappa, ranks, and the judge's bias."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from statsmodels.stats.inter_rater import cohens_kappa

from harness.json_text import parsed_object
from harness.judges.agreement import Interval, expected_score, over_rows, rank_correlation
from harness.judges.prompts import RUBRICS, rubric_named
from harness.scoring import Grading, Verdict

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class RatedText:
    """A text with the ratings that readers gave it without seeing any judge.

    Args:
        question: what the text replies to.
        gold: what the rubric holds it against: for AxBench's rubrics the concept.
        answer: the text.
        ratings: by rubric, one whole number from each reader, in the same order of readers everywhere.
    """

    question: str
    gold: str
    answer: str
    ratings: Mapping[str, tuple[int, ...]]

    def grading(self, rubric: str) -> Grading:
        """The same text as a question to a judge."""
        return Grading(rubric, self.question, self.gold, (), self.answer)


@dataclass(frozen=True)
class RatingTable:
    """How a judge's ratings by one rubric compare with readers'.

    Intervals draw whole questions, as texts that reply to one question are alike.

    Args:
        rubric: its name.
        num_texts: texts that were rated.
        num_questions: questions that they reply to.
        num_unscored: texts that the judge gave no rating.
        num_readers: how many rated every text.
        readers: quadratically weighted kappa of readers with one another, averaged over their pairs; the most that a
            judge can be asked for. None with a single reader.
        judge: quadratically weighted kappa of the judge with each reader, averaged.
        ranks: Spearman's rank correlation of the judge's expected rating with the readers' mean.
        error: mean of the judge's ratings less that of the readers'.
        means: the readers' mean for each rating that the judge gave, with the number of texts.
    """

    rubric: str
    num_texts: int
    num_questions: int
    num_unscored: int
    num_readers: int
    readers: Interval | None
    judge: Interval
    ranks: Interval
    error: Interval
    means: Mapping[str, tuple[float, int]]


def holds_ratings(path: Path) -> bool:
    """Whether the first row of a file of JSON Lines gives ratings, and not the label of an answer."""
    first = next((line for line in path.read_text("utf-8").split("\n") if line.strip()), "{}")
    return "ratings" in parsed_object(first, f"{path}, line 1")


def read_rated(path: Path) -> list[RatedText]:
    """Rated texts from JSON Lines: question, gold, answer, and ratings: ``{rubric: [one number per reader]}``.

    Raises:
        ValueError: a row lacks a field, names an unknown rubric, or holds a rating that the rubric does not allow;
            or rows differ in their rubrics or their number of readers. With its line.
    """
    lines = path.read_text("utf-8").split("\n")
    texts = [_rated(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not texts:
        raise ValueError(f"{path} holds no rated texts")

    shape = _readers_of(texts[0])
    for number, text in enumerate(texts, 1):
        if _readers_of(text) != shape:
            raise ValueError(
                f"{path}, rated text {number}: every text needs ratings by the same rubrics from equally many "
                f"readers; the first has {shape}, this one {_readers_of(text)}"
            )
    return texts


def _readers_of(text: RatedText) -> dict[str, int]:
    return {rubric: len(given) for rubric, given in sorted(text.ratings.items())}


def _rated(line: str, place: str) -> RatedText:
    row = parsed_object(line, place)
    missing = [name for name in ("question", "gold", "answer") if not isinstance(row.get(name), str)]
    if missing:
        raise ValueError(f"{place}: {', '.join(missing)} must be a text")
    by_rubric = row.get("ratings")
    if not isinstance(by_rubric, dict) or not by_rubric:
        raise ValueError(f"{place}: ratings must map rubrics to lists of numbers, got {by_rubric!r}")

    ratings = {name: _whole_numbers(given, name, place) for name, given in by_rubric.items()}
    return RatedText(row["question"], row["gold"], row["answer"], ratings)


def _whole_numbers(given: Any, rubric: str, place: str) -> tuple[int, ...]:
    numeric = sorted(name for name, one in RUBRICS.items() if one.numeric)
    if rubric not in numeric:
        raise ValueError(f"{place}: there is no rubric {rubric!r} with ratings; there are {', '.join(numeric)}")
    allowed = [int(value) for value in rubric_named(rubric).answers.values()]
    if not isinstance(given, list) or not given or any(type(rating) is not int for rating in given):
        raise ValueError(f"{place}: ratings of {rubric} must be a list of whole numbers, one per reader; got {given!r}")
    if any(rating not in allowed for rating in given):
        raise ValueError(f"{place}: ratings of {rubric} are {allowed[0]} to {allowed[-1]}, got {given!r}")
    return tuple(given)


def compare_ratings(rubric: str, texts: Sequence[RatedText], verdicts: Sequence[Verdict], seed: int = 0) -> RatingTable:
    """Agreement on one rubric; texts that the judge left unscored count as such and enter no figure.

    Args:
        rubric: its name.
        texts: rated by this rubric.
        verdicts: the judge's, one per text.
        seed: of the draws behind the intervals.

    Raises:
        ValueError: the judge scored none of the texts.
    """
    pairs = [(text, verdict) for text, verdict in zip(texts, verdicts, strict=True) if verdict.value is not None]
    if not pairs:
        reasons = sorted({verdict.reason for verdict in verdicts})
        raise ValueError(f"the judge gave no text a rating for {rubric}: {'; '.join(reasons)}")

    scored = _Scored.of(rubric, [text for text, _ in pairs], [verdict for _, verdict in pairs])
    questions = [text.question for text, _ in pairs]

    def interval(statistic: Callable[[Int[np.ndarray, "M"]], float]) -> Interval:
        return over_rows(statistic, questions, seed)

    num_readers = len(scored.readers)
    return RatingTable(
        rubric=rubric,
        num_texts=len(texts),
        num_questions=len(set(questions)),
        num_unscored=len(texts) - len(pairs),
        num_readers=num_readers,
        readers=interval(scored.kappa_between_readers) if num_readers > 1 else None,
        judge=interval(scored.kappa_with_judge),
        ranks=interval(scored.rank_correlation),
        error=interval(scored.error),
        means=scored.means_by_rating(),
    )


@dataclass(frozen=True)
class _Scored:
    """The ratings of texts that the judge scored, and what they come to on any choice of these texts."""

    readers: Int[np.ndarray, "R N"]
    judge: Int[np.ndarray, "N"]
    expected: Float[np.ndarray, "N"]
    num_ratings: int

    @classmethod
    def of(cls, rubric: str, texts: Sequence[RatedText], verdicts: Sequence[Verdict]) -> _Scored:
        return cls(
            readers=np.array([text.ratings[rubric] for text in texts]).T,
            judge=np.array([int(verdict.value or 0) for verdict in verdicts]),
            expected=np.array([expected_score(verdict) for verdict in verdicts]),
            num_ratings=1 + max(int(value) for value in rubric_named(rubric).answers.values()),
        )

    @property
    def people(self) -> Float[np.ndarray, "N"]:
        return self.readers.mean(0)

    def kappa_between_readers(self, rows: Int[np.ndarray, "M"]) -> float:
        pairs = combinations(self.readers[:, rows], 2)
        return float(np.mean([_weighted_kappa(one, other, self.num_ratings) for one, other in pairs]))

    def kappa_with_judge(self, rows: Int[np.ndarray, "M"]) -> float:
        judge = self.judge[rows]
        return float(np.mean([_weighted_kappa(one, judge, self.num_ratings) for one in self.readers[:, rows]]))

    def rank_correlation(self, rows: Int[np.ndarray, "M"]) -> float:
        return rank_correlation(self.people[rows], self.expected[rows])

    def error(self, rows: Int[np.ndarray, "M"]) -> float:
        return float((self.judge[rows] - self.people[rows]).mean())

    def means_by_rating(self) -> dict[str, tuple[float, int]]:
        """The readers' mean where the judge gave each rating, and the number of such texts."""
        given = {rating: self.judge == rating for rating in sorted(set(self.judge.tolist()))}
        return {str(rating): (float(self.people[rows].mean()), int(rows.sum())) for rating, rows in given.items()}


def _weighted_kappa(one: Int[np.ndarray, "M"], other: Int[np.ndarray, "M"], size: int) -> float:
    """Cohen's kappa with squared distances as weights; not a number where all ratings are the same one."""
    counts = np.zeros((size, size))
    np.add.at(counts, (one, other), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(cohens_kappa(counts, wt="quadratic", return_results=False)).item()
