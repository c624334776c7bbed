"""Scoring again from disk."""

import json
import shutil
from pathlib import Path

import pytest
from child import Cli

from harness.commands import score
from harness.subject import scorers
from harness.subject.load import ResolvedModel


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
    loaded: list[ResolvedModel] = []
    load = scorers.load_model
    monkeypatch.setattr(scorers, "load_model", lambda model: loaded.append(model) or load(model))
    assert tool(score.main, str(run_folder), "evaluator=[token_overlap,simpleqa_rubric]").status == 0
    assert loaded == []
    assert tool(score.main, str(run_folder), "evaluator=[token_overlap,perplexity]").status == 0
    assert [model.config.label for model in loaded] == ["tiny-llama"]


def test_a_new_choice_forgets_the_settings_of_the_old_one(tool: Cli, run_folder: Path) -> None:
    first = ("evaluator=[simpleqa_rubric]", "evaluator.simpleqa_rubric.max_unscored=0.9", "name=lenient")
    assert tool(score.main, str(run_folder), *first).status == 0
    lenient = run_folder.parent / "lenient"
    assert tool(score.main, str(lenient), "evaluator.simpleqa_rubric.rubric=simpleqa_verified", "name=both").status == 0
    both = info(run_folder.parent / "both")["config"]["evaluator"]["simpleqa_rubric"]
    assert (both["max_unscored"], both["rubric"]) == (0.9, "simpleqa_verified")
    assert tool(score.main, str(lenient), "evaluator=[simpleqa_rubric]", "name=fresh").status == 0
    assert info(run_folder.parent / "fresh")["config"]["evaluator"]["simpleqa_rubric"]["max_unscored"] == 0.2


def test_its_figures_are_printed(tool: Cli, run_folder: Path) -> None:
    done = tool(score.main, str(run_folder), "evaluator=token_overlap")
    assert "overlap 0." in done.out
    assert "(3 scored, 0 unscored)" in done.out


FOREIGN = {
    "a function": {"tracking": {"_target_": "torch.utils.collect_env.run", "command": "touch ran"}},
    "a class of another kind": {"judge": {"_target_": "subprocess.Popen", "args": "touch ran"}},
    "deeper in": {
        "scorer": {"_target_": "harness.subject.scorers.OtherModel", "model": {"_target_": "subprocess.Popen"}}
    },
    "an evaluator": {"evaluator": {"x": {"_target_": "subprocess.Popen", "args": "touch ran"}}},
    "code beside the run": {"judge": {"_target_": "mine.Judge"}},
}


@pytest.mark.parametrize("place", FOREIGN)
def test_nothing_that_a_foreign_run_names_is_run(
    tool: Cli, run_folder: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine.py").write_text("import pathlib; pathlib.Path('ran').touch()\nclass Judge: pass\n")
    content = info(run_folder)
    content["config"] |= FOREIGN[place]
    (run_folder / "run.json").write_text(json.dumps(content))
    error = tool(score.main, str(run_folder), "name=again").error
    assert "_target_ must name a class" in error
    assert not (tmp_path / "ran").exists()


def test_the_labels_of_a_foreign_run_lead_out_of_no_folder(tool: Cli, run_folder: Path, tmp_path: Path) -> None:
    content = info(run_folder)
    content["labels"] |= {"method": "../../../up", "task": "/root", "model": "a\nb", "seed": "0/.."}
    (run_folder / "run.json").write_text(json.dumps(content))
    before = set(tmp_path.iterdir())
    done = tool(score.main, str(run_folder), "evaluator=[token_overlap]")
    assert done.status == 0, done.err
    (new,) = new_runs(run_folder)
    assert new.name.startswith("root-a-b-up-per_prompt-s0-")
    assert set(tmp_path.iterdir()) == before


def test_a_foreign_run_cannot_switch_on_the_code_of_a_model(
    tool: Cli, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = info(run_folder)
    content["config"]["model"]["trust_remote_code"] = True
    (run_folder / "run.json").write_text(json.dumps(content))
    resolved = []
    resolve = score.resolve
    monkeypatch.setattr(score, "resolve", lambda config: resolved.append(config) or resolve(config))
    assert tool(score.main, str(run_folder), "name=again").status == 0
    assert [config.trust_remote_code for config in resolved] == [False]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=caa"], "only evaluator, judge, scorer, protocol, tracking, name can be changed"),
        (["evaluator=nosuch"], "evaluator=nosuch does not exist; choose one of"),
        (["evaluator=composite"], "judge=local"),
        (["evaluator=choice"], "choice scores options"),
    ],
)
def test_wrong_settings_are_one_line(tool: Cli, run_folder: Path, overrides: list[str], message: str) -> None:
    assert message in tool(score.main, str(run_folder), *overrides).error
    assert new_runs(run_folder) == []


def test_runs_that_cannot_be_scored_are_one_line_each(tool: Cli, run_folder: Path) -> None:
    assert "is not a run" in tool(score.main, "absent", "evaluator=perplexity").error
    assert "give at least one run" in tool(score.main, "evaluator=perplexity").error
    shutil.rmtree(run_folder.parent / "generations")
    assert "is missing; it held 3 lines" in tool(score.main, str(run_folder), "evaluator=token_overlap").error
