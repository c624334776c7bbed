"""Every task with a sample, from fitting to the report, on the tiny model."""

import json
from pathlib import Path

import pytest
from child import Cli
from laws.tiny_classifier import classifier_folder

SMALL = ("task.sample=true", "task.limit=4", "task.max_new_tokens=4", "num_trials=2", "search=fixed")
METRICS = {
    "boolq": "choice_accuracy",
    "copa": "choice_accuracy",
    "winogrande": "choice_accuracy",
    "bbq": "accuracy_ambiguous",
    "gsm8k": "number_correct",
    "harmful": "refused_harmful",
}


def only_run(folder: Path) -> dict:
    (path,) = folder.glob("*/run.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("task", METRICS)
def test_a_vector_is_fitted_and_scored(cli: Cli, tmp_path: Path, task: str) -> None:
    done = cli(f"task={task}", "method=caa", *SMALL)
    assert done.status == 0, done.err
    estimate = only_run(tmp_path / "runs")["estimates"][METRICS[task]]
    assert estimate["num_scored"] > 0
    assert 0 <= estimate["value"] <= 1


def test_toxicity_is_scored_by_the_classifier(cli: Cli, tmp_path: Path) -> None:
    classifier = f"evaluator.toxicity.model={classifier_folder()}"
    done = cli("task=realtoxicityprompts", "method=mean_act", *SMALL, classifier)
    assert done.status == 0, done.err
    estimates = only_run(tmp_path / "runs")["estimates"]
    assert {"toxicity", "toxic", "perplexity"} <= set(estimates)
    assert 0 < estimates["toxicity"]["value"] < 1
