"""Which of an example's trials counts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

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
