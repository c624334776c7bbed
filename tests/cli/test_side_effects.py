"""What was fitted and chosen on one task, measured on other prompts."""

import json
from pathlib import Path

from child import TINY, Cli
from safetensors.torch import load_file

from harness.laws.lab import job_of
from harness.records.stored import read_run
from harness.steps import subject_for
from harness.tasks.side_effects import SideEffects
from harness.workbench import Request, Workbench

SMALL = ("task.limit=3", "task.dev_size=2", "task.train_size=8", "evaluator=token_overlap")
SUITE = ("side_effects=standard", "side_effects.task.limit=8", "side_effects.task.max_new_tokens=4")
SEARCHED = ("method=caa", "search.num_trials=3", "search.dev_examples=2")


def runs(folder: Path) -> dict[tuple[str, str], dict]:
    records = [json.loads(path.read_text()) for path in folder.glob("*/run.json")]
    return {(run["labels"]["task"], run["labels"]["method"]): run for run in records}


def test_the_second_job_takes_over_what_the_first_one_fitted_and_chose(cli: Cli, tmp_path: Path) -> None:
    done = cli(
        "jobs=[['method=baseline'],['method=caa','search.num_trials=3','search.dev_examples=2']]", *SMALL, *SUITE
    )
    assert done.status == 0, done.err
    records = runs(tmp_path / "runs")
    assert set(records) == {(task, method) for task in ("facts", "side_effects") for method in ("baseline", "caa")}

    own, elsewhere = records["facts", "caa"], records["side_effects", "caa"]
    assert elsewhere["parameters"] == own["parameters"] != {}
    assert elsewhere["num_examples"] == 8
    assert set(elsewhere["evaluators"]) == {"token_overlap", "final_number", "refusal", "perplexity"}
    assert elsewhere["receipt"] is not None, "it is proved to have steered"
    assert records["side_effects", "baseline"]["num_examples"] == 8

    report = (tmp_path / "runs" / "comparison.json").read_text()
    assert "refused_harmless" in report
    assert "overlap" in report


def test_its_texts_are_those_of_the_fitted_tensors_with_the_chosen_parameters(cli: Cli, tmp_path: Path) -> None:
    assert cli(*SEARCHED, *SMALL, *SUITE).status == 0
    run = runs(tmp_path / "runs")["side_effects", "caa"]
    folder = tmp_path / "runs" / run["name"] / run["generations"]
    written = read_run(tmp_path / "runs" / run["name"]).selected
    assert not (folder / "trials.jsonl").exists(), "nothing is searched here"

    (artifact,) = (tmp_path / "runs" / "generations").glob("*/artifact.safetensors")
    job = job_of([*TINY, *SEARCHED, *SMALL])
    suite = SideEffects(limit=8, max_new_tokens=4)
    bench = Workbench(subject_for(job), suite, job.method, job.control, job.seed)
    bench.adopt(load_file(artifact))
    expected = bench.run([Request(item, run["parameters"], 0) for item in suite.examples("test")])
    assert [written[one.example_id].record.generation.token_ids for one in expected] == [e.token_ids for e in expected]


def test_parameters_of_single_items_hold_for_no_other_prompt(cli: Cli, tmp_path: Path) -> None:
    done = cli("method=caa", "search=per_prompt", "search.num_trials=2", *SMALL, *SUITE)
    assert done.status == 0, done.err
    assert set(runs(tmp_path / "runs")) == {("facts", "caa")}
    refused = cli("method=caa", "search=per_prompt", "search.num_trials=2", *SMALL, *SUITE, "side_effects.measure=true")
    assert refused.status == 1
    assert "side_effects needs parameters that hold for other prompts too" in refused.err


def test_a_run_of_the_suite_can_be_scored_again(cli: Cli, tmp_path: Path) -> None:
    from harness.commands.score import main

    assert cli("method=baseline", *SMALL, *SUITE).status == 0
    run = runs(tmp_path / "runs")["side_effects", "baseline"]
    assert main([str(tmp_path / "runs" / run["name"]), "evaluator=[token_overlap]"]) == 0
