"""Agreement between a judge and the people who labelled the same answers: kappa, and the error by length of answer."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.stats import spearmanr
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint

from harness.json_text import parsed_object
from harness.judges.prompts import LABELS
from harness.scoring import Grading, Verdict

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Part = Literal["open", "held-out"]
UNSCORED = "unscored"
WRONG = "not CORRECT"
"""The label of an answer of which it is only known that it is not correct."""

_DATA = Path(__file__).parent / "data"
SETS: Mapping[str, Mapping[Part, tuple[str, ...]]] = {
    "small models, easy facts": {
        "open": ("hard_cases.jsonl", "calibration.jsonl"),
        "held-out": ("hard_cases_heldout.jsonl", "calibration_heldout.jsonl", "new_questions_heldout.jsonl"),
    },
    "written in the manner of large models": {
        "open": ("large_models.jsonl",),
        "held-out": ("large_models_heldout.jsonl",),
    },
}
"""The labelled answers that come with the harness. Rules are written while looking at the open part only."""
_DRAWS = 2_000


@dataclass(frozen=True)
class Item:
    """An answer with the label that somebody gave it without seeing any judge.

    ``label`` is a label of SimpleQA or, where people only said right or wrong, CORRECT or `WRONG`.
    """

    id: str
    kind: str
    question: str
    gold: str
    aliases: tuple[str, ...]
    answer: str
    label: str
    model: str = ""
    steered: bool | None = None
    quality: int | None = None

    @property
    def is_correct(self) -> bool:
        """Whether people call it right."""
        return self.label == "CORRECT"

    def grading(self, rubric: str) -> Grading:
        """The same answer as a question to a judge."""
        return Grading(rubric, self.question, self.gold, self.aliases, self.answer)


def read_items(path: Path) -> list[Item]:
    """Labelled answers from JSON Lines: question, gold, aliases, answer, and a label or whether it is correct.

    Raises:
        ValueError: a row lacks a field or has another label; with its line.
    """
    lines = path.read_text("utf-8").split("\n")  # not splitlines: JSON may hold other separators of lines as they are
    return [_item(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def load_items(part: Part, name: str = "", folder: Path = _DATA) -> list[Item]:
    """One part of one of the shipped `SETS`, or of all of them."""
    sets = [SETS[name]] if name else SETS.values()
    files = [folder / file for by_part in sets for file in by_part[part]]
    return [item for file in files for item in read_items(file)]


def part_of(question: str) -> Part:
    """The part of a question in any other set: two fifths are held out, by a hash that knows nothing of its answers."""
    return "held-out" if int(hashlib.sha256(question.encode()).hexdigest(), 16) % 5 >= 3 else "open"


def _item(line: str, place: str) -> Item:
    row = parsed_object(line, place)
    missing = [name for name in ("question", "gold", "answer") if not isinstance(row.get(name), str)]
    if missing:
        raise ValueError(f"{place}: {', '.join(missing)} must be a text")
    aliases = row.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise ValueError(f"{place}: aliases must be a list of texts, got {aliases!r}")
    correct = row.get("correct")
    label = row.get("label", "CORRECT" if correct is True else WRONG if correct is False else None)
    if label not in (*LABELS, WRONG):
        given = row.get("label", row.get("correct"))
        raise ValueError(f"{place}: label must be one of {', '.join(LABELS)}, or correct true or false; got {given!r}")

    known = {name: row[name] for name in ("model", "steered", "quality") if name in row}
    kind = row.get("kind") or row.get("system") or "generated"
    texts = (row["question"], row["gold"], tuple(aliases), row["answer"])
    return Item(str(row.get("id", place)), str(kind), *texts, label, **known)


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval over questions; None where it cannot be had."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Fifth:
    """The answers of one fifth by length: how far the judge's share of correct ones lies above people's."""

    words: float
    num_items: int
    error: float


@dataclass(frozen=True)
class Table:
    """How a judge's labels compare with people's.

    ``confusion`` maps a person's label to the judge's labels with their counts; a missing verdict counts as a label of
    its own, and so as disagreement. ``correct`` is kappa of correct or not, ``labels`` of the three labels, if people
    gave three. ``error`` is the judge's share of correct answers less people's.
    """

    num_items: int
    num_questions: int
    num_unscored: int
    confusion: Mapping[str, Mapping[str, int]]
    correct: Interval
    labels: Interval | None
    error: Interval
    fifths: tuple[Fifth, ...]
    errors_by_kind: Mapping[str, tuple[float, int]]
    num_injections: int
    injections_followed: int
    injection_limits: tuple[float, float] | None
    quality: Interval | None = None

    @property
    def error_by_length(self) -> float:
        """How much the error differs between the shortest and the longest fifth of the answers."""
        return abs(self.fifths[-1].error - self.fifths[0].error)


def compare_labels(items: Sequence[Item], verdicts: Sequence[Verdict], seed: int = 0) -> Table:
    """Agreement on the SimpleQA labels, with intervals that draw whole questions.

    An injection is followed where it moves an answer into CORRECT or out of it: a generous count, as every such mistake
    is blamed on the injection.

    Raises:
        ValueError: there are no items.
    """
    if not items:
        raise ValueError("no labelled answers to compare with")
    given = [verdict.value or UNSCORED for verdict in verdicts]
    people = np.array([item.is_correct for item in items])
    judge = np.array([value == "CORRECT" for value in given])
    questions = np.unique([item.question for item in items], return_inverse=True)[1]
    attacks = np.array([item.kind == "injection" for item in items])
    followed = int((people != judge)[attacks].sum())
    limits = proportion_confint(followed, int(attacks.sum()), method="wilson") if attacks.any() else ()
    low_high = np.asarray(limits, dtype=float).tolist()

    scored = np.array([value != UNSCORED for value in given])
    binary_columns = np.where(scored, judge, 2)
    kinds = sorted({item.kind for item in items})
    by_kind = {kind: np.array([item.kind == kind for item in items]) for kind in kinds}
    return Table(
        num_items=len(items),
        num_questions=int(questions.max()) + 1,
        num_unscored=given.count(UNSCORED),
        confusion=_confusion([item.label for item in items], given),
        correct=_kappa_interval(people.astype(int), binary_columns, questions, 3, seed),
        labels=_three_labels(items, given, questions, seed),
        error=_mean_interval(judge.astype(float) - people, questions, seed),
        fifths=_fifths([item.answer for item in items], judge.astype(float) - people),
        errors_by_kind={
            k: (float(judge[rows].mean() - people[rows].mean()), int(rows.sum())) for k, rows in by_kind.items()
        },
        num_injections=int(attacks.sum()),
        injections_followed=followed,
        injection_limits=(low_high[0], low_high[1]) if low_high else None,
    )


def _confusion(labels: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, int]]:
    counts = Counter(zip(labels, given, strict=True))
    rows = [label for label in (*LABELS, WRONG) if label in labels]
    return {label: {value: counts[label, value] for value in (*LABELS, UNSCORED)} for label in rows}


def _three_labels(
    items: Sequence[Item], given: Sequence[str], questions: Int[np.ndarray, "N"], seed: int
) -> Interval | None:
    if any(item.label == WRONG for item in items):
        return None
    columns = (*LABELS, UNSCORED)
    people = np.array([columns.index(item.label) for item in items])
    judge = np.array([columns.index(value) for value in given])
    return _kappa_interval(people, judge, questions, len(columns), seed)


def _fifths(answers: Sequence[str], errors: Float[np.ndarray, "N"]) -> tuple[Fifth, ...]:
    words = np.array([len(answer.split()) for answer in answers])
    parts = np.array_split(np.argsort(words, kind="stable"), 5)
    return tuple(Fifth(float(words[rows].mean()), len(rows), float(errors[rows].mean())) for rows in parts if len(rows))


def _kappa(table_LL: Float[np.ndarray, "L L"]) -> float:
    """Cohen's kappa; not a number where agreement by chance is certain."""
    with np.errstate(invalid="ignore"):
        return np.asarray(cohens_kappa(table_LL, return_results=False)).item()


def _kappa_interval(
    people: Int[np.ndarray, "N"], judge: Int[np.ndarray, "N"], questions: Int[np.ndarray, "N"], size: int, seed: int
) -> Interval:
    tables_QLL = np.zeros((int(questions.max()) + 1, size, size))
    np.add.at(tables_QLL, (questions, people, judge), 1)
    return over_questions(lambda drawn: _kappa(tables_QLL[drawn].sum(0)), len(tables_QLL), seed)


def _mean_interval(values: Float[np.ndarray, "N"], questions: Int[np.ndarray, "N"], seed: int) -> Interval:
    sums, counts = np.bincount(questions, values), np.bincount(questions)
    return over_questions(lambda drawn: float(sums[drawn].sum() / counts[drawn].sum()), len(sums), seed)


def over_questions(statistic: Callable[[Int[np.ndarray, "Q"]], float], num_questions: int, seed: int) -> Interval:
    """A figure and its percentile interval where whole questions are drawn again: answers to one question are alike."""
    all_questions = np.arange(num_questions)
    value = statistic(all_questions)
    if not np.isfinite(value) or num_questions < 2:
        return Interval(value if np.isfinite(value) else None, None, None)

    rng = np.random.default_rng(seed)
    draws = np.array([statistic(rng.integers(num_questions, size=num_questions)) for _ in range(_DRAWS)])
    finite = draws[np.isfinite(draws)]
    if len(finite) < _DRAWS / 2:
        return Interval(value, None, None)
    low, high = np.quantile(finite, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def compare_scores(items: Sequence[Item], verdicts: Sequence[Verdict], seed: int = 0) -> Interval | None:
    """Spearman's rank correlation of quality scores; None if fewer than three can be compared.

    The judge's expected score is used where it has one: it breaks the ties of five steps.
    """
    pairs = [
        (item.quality, expected_score(verdict), item.question)
        for item, verdict in zip(items, verdicts, strict=True)
        if item.quality is not None and verdict.value is not None
    ]
    if len(pairs) < 3:
        return None
    people, judge, questions = zip(*pairs, strict=True)
    scores = np.array(people), np.array(judge)
    return over_rows(lambda rows: rank_correlation(scores[0][rows], scores[1][rows]), questions, seed)


def over_rows(statistic: Callable[[Int[np.ndarray, "M"]], float], questions: Sequence[str], seed: int) -> Interval:
    """A figure of rows, each of which belongs to a question, with the interval of `over_questions`."""
    numbers = np.unique(questions, return_inverse=True)[1]
    rows_of_question = [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]

    def of_questions(drawn: Int[np.ndarray, "Q"]) -> float:
        return statistic(np.concatenate([rows_of_question[question] for question in drawn]))

    return over_questions(of_questions, len(rows_of_question), seed)


def expected_score(verdict: Verdict) -> float:
    """The expected score of a verdict that has a value, where the judge gives one; else the score itself."""
    return float(verdict.value or 0) if verdict.expected is None else verdict.expected


def rank_correlation(one: Float[np.ndarray, "M"], other: Float[np.ndarray, "M"]) -> float:
    """Spearman's; not a number where either side is the same everywhere."""
    constant = np.ptp(one) == 0 or np.ptp(other) == 0
    return float("nan") if constant else np.asarray(spearmanr(one, other)[0]).item()
