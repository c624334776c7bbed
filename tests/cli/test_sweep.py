"""Sweeps on the tiny model: generations are shared, failures are kept apart, finished work is not done again."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from child import TINY, Cli

from harness.records.locks import locked

SMALL = ("task.limit=3", "task.dev_size=4", "task.train_size=16", "search.num_trials=2")


def finished_runs(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/run.json"))]


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*") if path.parent != folder}


def test_a_sweep_shares_generations_and_reports_all_metrics(cli: Cli, tmp_path: Path) -> None:
    methods = ("baseline", "full_layer", "segmented", "caa")
    overrides = ("task.limit=3", "task.dev_size=4", "task.train_size=16")
    done = cli("-m", f"method={','.join(methods)}", "evaluator=token_overlap,perplexity", *overrides)
    assert done.status == 0, done.err
    out = tmp_path / "runs"
    assert len(list((out / "generations").iterdir())) == 4
    runs = finished_runs(out)
    assert len(runs) == 8
    assert {run["labels"]["method"] for run in runs} == set(methods)
    assert all(run["status"] == "done" and run["num_examples"] == 3 for run in runs)
    assert (out / "report.html").stat().st_size > 10_000
    comparison = json.dumps(json.loads((out / "comparison.json").read_text()))
    assert all(name in comparison for name in (*methods, "overlap", "perplexity"))
    assert "cannot be compared" not in done.out

    before = stamps(out)
    again = cli("-m", f"method={','.join(methods)}", "evaluator=token_overlap,perplexity", *overrides)
    assert again.status == 0
    assert stamps(out) == before


def test_a_named_sweep_keeps_an_index_of_its_runs(cli: Cli, tmp_path: Path) -> None:
    common = ("search=fixed", "evaluator=token_overlap", "task.limit=2", "sweep=mine")
    assert cli("-m", "method=baseline,caa", "task.train_size=4", *common).status == 0
    assert cli("-m", "method=baseline", "seed=1", *common).status == 0

    lines = list(csv.DictReader((tmp_path / "runs" / "mine" / "index.csv").read_text().splitlines()))
    assert [(line["method"], line["seed"], line["status"]) for line in lines] == [
        ("baseline", "0", "done"), ("caa", "0", "done"), ("baseline", "1", "done"),
    ]  # fmt: skip
    for line in lines:
        record = json.loads((tmp_path / "runs" / "mine" / line["folder"] / "run.json").read_text())
        assert float(line["overlap"]) == record["estimates"]["overlap"]["value"]
        assert line["created"] == record["created"]
    assert "method=caa" in lines[1]["overrides"]
    assert "sweep=mine" not in lines[1]["overrides"], "what all jobs share tells none of them apart"


def test_published_values_and_both_protocols_stand_side_by_side(cli: Cli, tmp_path: Path) -> None:
    claim = "+expect.baseline.overlap={value:0.9,tolerance:0.1,source:'a paper'}"
    searched = "['method=caa','search=per_prompt']"
    jobs = f"jobs=[['method=baseline'],{searched},{searched[:-1]},'protocol.scored_trials=best']]"
    done = cli(jobs, claim, "evaluator=token_overlap", "num_trials=2", *SMALL[:3])
    assert done.status == 0, done.err
    assert "a paper" in done.out
    assert "outside" in done.out
    honest, published = (
        run for chosen in ("selected", "best") for run in finished_runs(tmp_path / "runs")
        if run["labels"]["method"] == "caa" and run["scored_trials"] == chosen
    )  # fmt: skip
    assert honest["generations"] == published["generations"], "the trials are made once"
    assert published["estimates"]["overlap"]["value"] >= honest["estimates"]["overlap"]["value"]
    assert published["oracle"]
    assert published["optimised_metrics"] == ["contains_gold", "overlap"]
    comparison = (tmp_path / "runs" / "comparison.json").read_text()
    assert "scored_trials=best" in comparison
    assert "each example counts with its best one" in comparison


def test_a_task_with_an_objective_of_two_terms_can_be_searched(cli: Cli, tmp_path: Path) -> None:
    small = ("task.limit=3", "task.dev_size=4", "task.train_size=16", "task.max_new_tokens=4")
    done = cli("method=diffmean", "task=sentiment", "search=dev_split", "num_trials=2", *small)
    assert done.status == 0, done.err
    (run,) = finished_runs(tmp_path / "runs")
    assert run["cost"]["trials"] == 2 * 4
    assert run["estimates"]["target_logratio"]["num_scored"] > 0


def test_a_job_whose_weights_are_missing_does_not_stop_the_others(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8,
                                                    "num_attention_heads": 2}))  # fmt: skip
    missing = f"['method=baseline','model.kind=hub','model.id={folder}','model.family=null']"
    done = cli(f"jobs=[{missing},['method=baseline']]", "evaluator=token_overlap", "task.limit=2")
    assert done.status == 1
    assert [run["status"] for run in finished_runs(tmp_path / "runs")] == ["done"]
    assert (tmp_path / "runs" / "report.html").is_file() or "wrote" in done.out


def test_two_evaluators_in_one_run(cli: Cli, tmp_path: Path) -> None:
    assert cli("method=baseline", "evaluator=[token_overlap,perplexity]", "task.limit=2").status == 0
    (run,) = finished_runs(tmp_path / "runs")
    assert {"overlap", "perplexity"} <= set(run["estimates"])


def test_one_failing_job_does_not_stop_the_others(cli: Cli, tmp_path: Path) -> None:
    done = cli("-m", "method=caa", "method.layer=1,99,2", "search=fixed", "evaluator=token_overlap", *SMALL[:3])
    assert done.status == 1
    assert "layer must be a whole number from 0 to 3, got 99" in done.error
    assert [run["status"] for run in finished_runs(tmp_path / "runs")] == ["done", "done"]
    assert (tmp_path / "runs" / "report.html").is_file()


def test_a_job_that_fails_half_way_is_recorded_and_reported(cli: Cli, tmp_path: Path) -> None:
    """A strength beyond float32 passes every check, but its receipt shows states that are no numbers."""
    done = cli("-m", "method=caa", "method.strength=1e39,0.3", "search=fixed", "evaluator=token_overlap", *SMALL[:3])
    assert done.status == 1
    assert "hidden states that are not numbers" in done.error
    statuses = {run["config"]["method"]["strength"]: run["status"] for run in finished_runs(tmp_path / "runs")}
    assert statuses == {1e39: "failed", 0.3: "done"}
    assert "hidden states that are not numbers" in (tmp_path / "runs" / "comparison.json").read_text()


def test_strength_0_in_a_dose_response_sweep_is_the_unsteered_point(cli: Cli, tmp_path: Path) -> None:
    strengths = "method.strength=0.0,0.3,0.6"
    done = cli("-m", "method=caa", strengths, "search=fixed", "evaluator=token_overlap", *SMALL[:3])
    assert done.status == 0, done.err
    receipts = {run["config"]["method"]["strength"]: run["receipt"] for run in finished_runs(tmp_path / "runs")}
    assert {strength: receipt["null"] for strength, receipt in receipts.items()} == {0.0: True, 0.3: False, 0.6: False}
    (comparison,) = json.loads((tmp_path / "runs" / "comparison.json").read_text())["comparisons"]
    assert len(comparison["entries"]) == 3
    assert not comparison["failures"]


def test_the_module_runs_from_any_directory(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness", *TINY, "method=baseline", "evaluator=token_overlap", "task.limit=2"]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    (run,) = finished_runs(tmp_path / "runs")
    assert run["status"] == "done"


def test_a_key_that_another_process_holds_is_waited_for_then_refused(cli: Cli, tmp_path: Path) -> None:
    common = ("method=baseline", "evaluator=token_overlap", "task.limit=2")
    assert cli(*common).status == 0
    (folder,) = (tmp_path / "runs" / "generations").iterdir()
    for path in (tmp_path / "runs").glob("*/run.json"):
        path.unlink()
    with locked(folder, 0):
        assert "is working on runs" in cli(*common, "lock_wait=0.1").error
    assert cli(*common, "lock_wait=0.1").status == 0


def test_two_runs_on_one_key_at_once_do_the_work_once(spawn: Callable, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()

    common = ("method=segmented", "evaluator=token_overlap", "task.limit=4", "search.num_trials=4")
    out = f"out={tmp_path / 'runs'}"
    children = [spawn(*common, out, folder=folder) for folder in folders]
    for child, folder in zip(children, folders, strict=True):
        child.join(240)
        assert child.exitcode == 0, (folder / "stderr").read_text()

    (generations,) = (tmp_path / "runs" / "generations").iterdir()
    for name, key in (("trials", ("example_id", "trial")), ("generations", ("example_id",))):
        rows = [json.loads(line) for line in (generations / f"{name}.jsonl").read_text().splitlines()]
        keys = [tuple(row[part] for part in key) for row in rows]
        assert len(keys) == len(set(keys)) == 4 * (5 if name == "trials" else 1)


def test_an_option_that_the_default_task_lacks_reaches_the_tasks_that_have_it(cli: Cli, tmp_path: Path) -> None:
    done = cli("-m", "task=copa,boolq,behaviors", "task.sample=true", "method=baseline", "evaluator=choice")
    assert done.status == 0, done.err
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/*/run.json"))]
    sampled = {record["labels"]["task"]: record["config"]["task"].get("sample") for record in records}
    assert sampled == {"copa": True, "boolq": True, "behaviors": None}
