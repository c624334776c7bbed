"""The objective by hand."""

import math
from dataclasses import dataclass

import pytest

from harness.search.objective import Objective, Term
from harness.types import Evaluator, Example, Generation, Metric, Record, Score, Tools


@dataclass(frozen=True, kw_only=True)
class Known(Evaluator):
    """Gives the numbers that stand in the text: overlap and perplexity, "-" for unscored."""

    metrics = (
        Metric("overlap", higher_is_better=True, low=0, high=1),
        Metric("perplexity", higher_is_better=False, low=1, high=math.inf),
    )

    def score(self, records: list[Record], tools: Tools) -> list[Score]:
        scores = []
        for column, metric in enumerate(("overlap", "perplexity")):
            for record in records:
                word = record.generation.text.split()[column]
                value = None if word == "-" else float(word)
                scores.append(Score(record.example.id, metric, value, "" if value is not None else "not said"))
        return scores


def records(*texts: str) -> list[Record]:
    return [
        Record(Example(str(index), "?"), Generation(str(index), {}, text, (), "stop"), "?")
        for index, text in enumerate(texts)
    ]


def paper() -> Objective:
    # One evaluator each, as a configuration makes them: equal, not the same.
    return Objective(
        terms=(
            Term(evaluator=Known(), metric="overlap", weight=0.7),
            Term(evaluator=Known(), metric="perplexity", weight=-0.3, cap=100.0),
        )
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5 20", 0.7 * 0.5 - 0.3 * 0.2),
        ("1 1", 0.7 - 0.003),
        ("0 5000", -0.3),  # capped
        ("0.5 -", 0.35 - 0.3),  # unscored counts as the worst there is
        ("- 20", 0.0 - 0.06),
    ],
)
def test_values_by_hand(text: str, value: float) -> None:
    ((worth, _),) = paper().score(records(text), Tools())
    assert worth == pytest.approx(value)


def test_each_record_gets_its_own_value_and_terms() -> None:
    scores = paper().score(records("0.5 20", "1 1", "0 -"), Tools())
    assert [round(value, 6) for value, _ in scores] == [0.29, 0.697, -0.3]
    assert scores[2][1] == {"overlap": 0.0, "perplexity": None}


def test_skipped_terms_count_nothing() -> None:
    objective = Objective(terms=(Term(evaluator=Known(), metric="overlap", weight=0.7, unscored="skip"),))
    assert objective.score(records("- 1"), Tools())[0][0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "nosuch"}, "no metric nosuch"),
        ({"metric": "overlap", "cap": 0.0}, "cap of overlap must be above 0"),
        ({"metric": "perplexity", "weight": -1.0}, "no worst value"),
        ({"metric": "overlap", "unscored": "zero"}, "worst or skip"),
    ],
)
def test_wrong_terms_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Term(**({"evaluator": Known(), "weight": 1.0} | options))
    with pytest.raises(ValueError, match="at least one term"):
        Objective(terms=())
