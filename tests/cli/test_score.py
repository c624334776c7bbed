"""Scoring again from disk."""

import json
import shutil
from pathlib import Path

import pytest
from child import Cli

from harness import score
from harness.subject.load import ModelConfig


@pytest.fixture
def run_folder(cli: Cli, tmp_path: Path) -> Path:
    assert cli("method=full_layer", "evaluator=perplexity", "task.limit=3", "search.num_trials=2").status == 0
    (path,) = tmp_path.glob("runs/*/run.json")
    return path.parent


def info(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def new_runs(folder: Path) -> list[Path]:
    return [path.parent for path in folder.parent.glob("*/run.json") if path.parent != folder]


def test_a_new_run_from_old_generations(tool: Cli, cli: Cli, run_folder: Path) -> None:
    done = tool(score.main, str(run_folder), "evaluator=[perplexity,token_overlap]")
    assert done.status == 0, done.err
    (new,) = new_runs(run_folder)
    old, scored = info(run_folder), info(new)
    assert scored["generations"] == old["generations"]
    assert scored["key"] != old["key"]
    assert scored["estimates"]["perplexity"] == old["estimates"]["perplexity"]
    assert {"overlap", "contains_gold"} <= set(scored["estimates"])
    assert scored["oracle"] is True
    assert scored["receipt"] == old["receipt"]
    assert len(list((run_folder.parent / "generations").iterdir())) == 1
    direct = ("method=full_layer", "evaluator=[perplexity,token_overlap]", "task.limit=3", "search.num_trials=2")
    assert cli(*direct).status == 0
    assert new_runs(run_folder) == [new], "the run that this command names is there already"


def test_no_model_is_loaded_unless_it_scores(tool: Cli, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[ModelConfig] = []
    load = score.load_model
    monkeypatch.setattr(score, "load_model", lambda config: loaded.append(config) or load(config))
    assert tool(score.main, str(run_folder), "evaluator=[token_overlap,simpleqa_rubric]").status == 0
    assert loaded == []
    assert tool(score.main, str(run_folder), "evaluator=[token_overlap,perplexity]").status == 0
    assert [config.label for config in loaded] == ["tiny-llama"]


def test_settings_inside_the_old_choice_are_forgotten_with_it() -> None:
    command = ["method=caa", "evaluator=[composite]", "evaluator.composite.threshold=0.7", "judge=local", "name=mine"]
    assert score.changed(command, ["evaluator=perplexity"]) == ["method=caa", "judge=local", "evaluator=perplexity"]
    assert score.changed(command, ["judge.batch_size=2"]) == [*command[:4], "judge.batch_size=2"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=caa"], "only evaluator, judge, scorer, tracking, scored_trials, name can be changed"),
        (["evaluator=nosuch"], "evaluator=nosuch does not exist; choose one of"),
        (["evaluator=composite"], "judge=local"),
        (["evaluator=choice"], "choice scores options"),
    ],
)
def test_wrong_settings_are_one_line(tool: Cli, run_folder: Path, overrides: list[str], said: str) -> None:
    assert said in tool(score.main, str(run_folder), *overrides).error
    assert new_runs(run_folder) == []


def test_runs_that_cannot_be_scored_are_one_line_each(tool: Cli, run_folder: Path) -> None:
    assert "is not a run" in tool(score.main, "absent", "evaluator=perplexity").error
    assert "give at least one run" in tool(score.main, "evaluator=perplexity").error
    shutil.rmtree(run_folder.parent / "generations")
    assert "no generations" in tool(score.main, str(run_folder), "evaluator=token_overlap").error
