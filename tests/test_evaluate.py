"""Which of an example's trials counts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from evaluators.token_overlap import TokenOverlap
from harness.evaluate import evaluate
from harness.types import Evaluator, Example, Generation, Metric, Record, Score, Tools


def record(name: str, text: str) -> Record:
    return Record(Example(name, "Who?", "Ada Lovelace", ()), Generation(name, {}, text, (), "stop"), "Who?")


def test_the_best_scored_trial_counts_and_the_first_of_equal_ones() -> None:
    selected = [record("a", "nobody"), record("b", "Lovelace")]
    tried = ["nobody", "Lovelace or Ada", "Ada Lovelace", "Ada"]  # the second and third are equal in overlap
    trials = {"a": [replace(selected[0], generation=Generation("a", {}, text, (), "stop")) for text in tried]}
    chosen = {"overlap": TokenOverlap()}
    plain = evaluate(selected, chosen, lambda _: Tools(), 0)
    best = evaluate(selected, chosen, lambda _: Tools(), 0, trials)
    values = {(score.example_id, score.metric): score.value for score in best.scores}
    assert values == {
        ("a", "overlap"): 1.0,
        ("a", "contains_gold"): 0.0,  # of the same trial as the overlap, not the best by itself
        ("b", "overlap"): 0.5,  # without trials, the selected text counts
        ("b", "contains_gold"): 0.0,
    }
    assert plain.estimates["overlap"].value == 0.25
    assert best.estimates["overlap"].value == 0.75


@dataclass(frozen=True, kw_only=True)
class LargestLatent(Evaluator):
    """What the method read in a concept's texts, and nothing that was written."""

    metrics: ClassVar = (Metric("largest", True, 0.0, 10.0),)
    reads: ClassVar = "latents"

    def score(self, records: Sequence[Record], tools: Tools) -> list[Score]:
        return [Score(item.example.id, "largest", max(item.generation.latents)) for item in records]


def test_intervals_draw_the_concepts_of_each_evaluators_own_records() -> None:
    """Four texts of two concepts, and one record of latents for each concept: two units either way."""
    written = []
    for concept, text in (("c0", "Ada"), ("c1", "nobody")):
        for name in (f"{concept}-0", f"{concept}-1"):
            example = Example(name, "Who?", "Ada", cluster=concept)
            written.append(Record(example, Generation(name, {}, text, (), "stop"), "Who?"))
    read = [
        Record(Example(concept, "Who?", "Ada"), Generation(concept, {}, "", (), "latents", latents=(1.0, 2.0)), "")
        for concept in ("c0", "c1")
    ]
    evaluators = {"overlap": TokenOverlap(), "latents": LargestLatent()}
    together = evaluate([*written, *read], evaluators, lambda _: Tools(), 0).estimates
    assert together["largest"].value == 2.0
    assert (together["largest"].num_scored, together["overlap"].num_scored) == (2, 4)

    by_concept = evaluate([written[0], written[2]], {"overlap": TokenOverlap()}, lambda _: Tools(), 0).estimates
    ends = [(estimates["overlap"].low, estimates["overlap"].high) for estimates in (together, by_concept)]
    assert ends[0] == ends[1], "the second text of a concept says nothing new"


@dataclass(frozen=True, kw_only=True)
class Mistaken(Evaluator):
    """Gives whatever it is told to."""

    metrics: ClassVar = (Metric("share", True, 0.0, 1.0),)
    gives: Any

    def score(self, records: Sequence[Record], tools: Tools) -> Any:
        return self.gives


@pytest.mark.parametrize(
    ("gives", "words"),
    [
        ([0.5, 0.5], "score must return a list of Score, one for each record and metric; got a float among them"),
        ([Score("a", "share", 0.5)], "share has 1 scores for 2 records, one each is due"),
        ([Score("b", "share", 0.5), Score("a", "share", 0.5)], "share has 2 scores for 2 records, one each is due"),
        ([Score("a", "share", 0.5), Score("b", "share", 7.0)], "share must lie between 0 and 1, got 7 for b"),
    ],
    ids=["numbers", "too few", "another order", "out of range"],
)
def test_what_an_evaluator_gets_wrong_is_named(gives: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"evaluator mine: {words}"):
        evaluate([record("a", "x"), record("b", "y")], {"mine": Mistaken(gives=gives)}, lambda _: Tools(), 0)
