"""Only what the un-steered model gets wrong counts: its answers are made once, and nothing else is searched."""

import json
from pathlib import Path

import pytest
from child import TINY, Cli

from evaluators.token_overlap import TokenOverlap
from harness.build import build
from harness.config import composed
from harness.protocol import Protocol

SMALL = ("task.limit=12", "num_trials=2", "protocol=baseline_failures")
JOBS = "jobs=[['method=baseline'],['method=segmented','search.incumbent=false']]"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("evaluator", ["[token_overlap]", "[token_overlap,simpleqa_rubric]"])
def test_kept_rows_alone_are_searched(cli: Cli, tmp_path: Path, evaluator: str) -> None:
    done = cli(*SMALL, f"evaluator={evaluator}", JOBS)
    assert done.status == 0, done.err
    runs = {run["labels"]["method"]: run for run in map(read, tmp_path.glob("runs/*/run.json"))}
    kept = runs["segmented"]["subset"]["ids"]
    assert 0 < len(kept) < 12
    assert runs["baseline"]["subset"] == runs["segmented"]["subset"]
    assert runs["segmented"]["subset"]["of"] == 12

    folders = sorted(tmp_path.glob("runs/generations/*"), key=lambda folder: (folder / "trials.jsonl").exists())
    unsteered, searched = folders
    assert len(lines(unsteered / "generations.jsonl")) == 12, "made once, and read by both jobs"
    assert [row["example_id"] for row in lines(searched / "generations.jsonl")] == kept
    trials = lines(searched / "trials.jsonl")
    assert sorted((row["example_id"], row["trial"]) for row in trials) == [(name, n) for name in kept for n in (0, 1)]
    assert {run["num_examples"] for run in runs.values()} == {len(kept)}


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_seeds_are_one_entry_and_another_decision_is_another_run() -> None:
    def keys(*overrides: str):
        return build(*composed([*TINY, *SMALL, "method=segmented", "evaluator=[token_overlap]", *overrides])).keys

    here = keys()
    assert keys("seed=1").entry == here.entry
    assert keys("seed=1").generations != here.generations
    assert keys("protocol.baseline_prompt='Q: {question}'").generations != here.generations
    assert keys("protocol.grader.graded_text=full").generations != here.generations
    assert keys("protocol=standard").generations != here.generations


def test_something_must_say_what_is_incorrect(cli: Cli) -> None:
    nobody = ("protocol.grader=null", "evaluator=[token_overlap]", "method=baseline")
    assert "needs an evaluator that says what is incorrect" in cli(*SMALL, *nobody).error


def test_a_grader_that_calls_nothing_incorrect_is_refused() -> None:
    with pytest.raises(ValueError, match=r"protocol\.grader must have the metric incorrect; TokenOverlap has not"):
        Protocol(grader=TokenOverlap())
