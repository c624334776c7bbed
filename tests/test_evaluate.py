"""Which of an example's trials counts."""

from dataclasses import replace

from evaluators.token_overlap import TokenOverlap
from harness.evaluate import evaluate
from harness.types import Example, Generation, Record, Tools


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
