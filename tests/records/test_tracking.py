import json
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb_files import OfflineRun, read_offline
from wandb_server import Server, serving

from harness import progress
from harness.records.publication import read_publication
from harness.records.tracking import Tracking, WandbTracking
from harness.records.wandb_run import is_logged_in, wanted_mode

TEXTS = {"q1": ("in Oslo", "in Bergen"), "q2": ("no idea", "no idea")}
OBJECTIVES = {"q1": {-1: 0.2, 0: 0.1, 1: 0.6, 2: 0.4}, "q2": {-1: 0.4, 0: 0.3, 1: 0.2, 2: 0.5}}


@pytest.fixture(autouse=True)
def _own_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A W&B that knows neither this machine's login nor the settings of another test."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    wandb.teardown()
    yield
    wandb.teardown()


def log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server to be online with."""
    with serving() as state:
        monkeypatch.setenv("WANDB_BASE_URL", state.url)
        log_in(monkeypatch)
        wandb.teardown()
        yield state
        wandb.teardown()


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


OVERLAP = {"name": "overlap", "higher_is_better": True, "low": 0.0, "high": 1.0}
GENERATED = {"token_ids": [1], "finish": "stop", "prompt_tokens": 3, "near_ties": 0, "choice_logprobs": []}


def estimate(metric: str, value: float, low: float, scored: int) -> dict[str, Any]:
    return {"metric": metric, "value": value, "low": low, "high": 1.0, "num_scored": scored, "num_unscored": 0}


def info(**changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "key": "0123abcd",
        "entry": "4567cdef",
        "name": "facts-caa",
        "status": "done",
        "created": "2026-01-02T03:04:05+00:00",
        "config": {"method": {"_target_": "methods.single_vector.SingleVector", "layer": 3}, "seed": 7, "out": "runs"},
        "labels": {
            "method": "caa", "search": "per_prompt", "control": "none", "task": "facts", "model": "tiny", "seed": "7",
        },
        "access": ["gold", "pairs"],
        "oracle": True,
        "optimised_metrics": ["overlap"],
        "evaluators": {"token_overlap": {"version": 1, "metrics": [OVERLAP], "judged": False}},
        "estimates": {
            "overlap": estimate("overlap", 0.75, 0.5, 2),
            "correct": {**estimate("correct", 1.0, 0.2, 1), "num_unscored": 1},
        },
        "derived": {"f1": 0.31},
        "cost": {"forward_tokens": 1234, "trials": 6, "seconds": 2.5},
        "provenance": {"commit": "abc1234"},
        "receipt": {
            "rows": 2, "sites_hit": 1, "sites_missed": [], "kl_mean": 0.25, "kl_max": 0.5,
            "sites": {"3.block": {"relative_change": 0.1, "tokens_prompt": 3, "tokens_completion": 4}},
        },
        "generations": "../generations/0123abcd",
        "error": None,
    } | changes  # fmt: skip


def write_run(out: Path, **changes: Any) -> Path:
    content = info(**changes)
    run, generations = out / content["name"], out / "generations" / "0123abcd"
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text(json.dumps(content), encoding="utf-8")
    write_lines(run / "scores.jsonl", [
        {"example_id": "q1", "metric": "overlap", "value": 1, "reason": "", "details": {}},
        {"example_id": "q2", "metric": "overlap", "value": 0.5, "reason": "", "details": {}},
        {"example_id": "q1", "metric": "correct", "value": 1.0, "reason": "", "details": {}},
        {"example_id": "q2", "metric": "correct", "value": None, "reason": "the judge did not answer", "details": {}},
    ])  # fmt: skip
    write_lines(generations / "generations.jsonl", [
        {
            "example_id": name, "question": f"Where is {name}?", "answer": "Bergen", "aliases": ["Bjørgvin", "BGO"],
            "distractors": [], "choices": [], "concept": "", "cluster": "", "target": None,
            "trial": 0, "objective": None,
            "group": "", "metadata": {"topic": "Places"}, "prompt": f"Q: {name}?", "parameters": {"strength": 2},
            "text": steered, **GENERATED,
        }
        for name, (_, steered) in TEXTS.items()
    ])  # fmt: skip
    write_lines(generations / "trials.jsonl", [
        {
            "example_id": name, "round": 0, "trial": trial, "parameters": {"strength": float(trial)}, "terms": {},
            "objective": objective, "text": TEXTS[name][0] if trial == -1 else "a trial", **GENERATED,
        }
        for name, objectives in OBJECTIVES.items()
        for trial, objective in objectives.items()
    ])  # fmt: skip
    return run


def only(out: Path) -> OfflineRun:
    (published,) = read_offline(out)
    return published


def test_offline_copy_holds_what_the_run_directory_holds(tmp_path: Path) -> None:
    tracking = WandbTracking(project="steer", entity="lab", tags=("mine",))
    name = tracking.publish(write_run(tmp_path), "sweep-1")

    copy = only(tmp_path)
    run = copy.run
    assert (run.run_id, run.display_name, run.project, run.entity) == (name, "facts-caa", "steer", "lab")
    assert (run.run_group, run.job_type, copy.exit_code) == ("sweep-1", "caa", 0)
    assert list(run.tags) == ["facts", "tiny", "caa", "per_prompt", "oracle", "mine"]
    assert copy.config["method"] == {"_target_": "methods.single_vector.SingleVector", "layer": 3}
    assert (copy.config["seed"], copy.config["oracle"], copy.config["entry"]) == (7, True, "caa · per_prompt")
    assert copy.config["run"]["provenance"]["commit"] == "abc1234"
    assert copy.config["run"]["access"] == ["gold", "pairs"]


def test_summary_has_every_metric_with_its_interval_and_counts(tmp_path: Path) -> None:
    WandbTracking().publish(write_run(tmp_path))
    summary = only(tmp_path).summary
    assert {name: value for name, value in summary.items() if name.startswith("correct/")} == {
        "correct/value": 1.0, "correct/low": 0.2, "correct/high": 1.0,
        "correct/num_scored": 1, "correct/num_unscored": 1,
    }  # fmt: skip
    assert (summary["overlap/value"], summary["overlap/high"]) == (0.75, 1.0)
    assert summary["derived/f1"] == 0.31
    assert (summary["cost/forward_tokens"], summary["receipt/kl_mean"]) == (1234, 0.25)


def test_fitted_tensors_and_trials_are_artifacts(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    fitted = tmp_path / "generations" / "0123abcd" / "artifact.safetensors"
    fitted.write_bytes(b"tensors")
    WandbTracking().publish(run)
    artifacts = only(tmp_path).artifacts
    assert artifacts.keys() == {"run_table", "fitted", "trials"}
    (stored,) = artifacts["fitted"].manifest.contents
    assert (stored.path, stored.size) == ("artifact.safetensors", len(b"tensors"))


def test_a_run_is_open_from_its_start(tmp_path: Path) -> None:
    tracking, running = WandbTracking(), write_run(tmp_path, status="running", estimates={}, receipt=None)
    with tracking.live(running, "sweep-1") as live:
        assert live is not None
        assert live.run.config["seed"] == 7
        with progress.phase("test items", 2) as advance:
            advance(1)
        progress.report({"search/round_best": 0.5})
        assert list(tmp_path.glob("wandb/offline-run-*"))
        name = tracking.publish(write_run(tmp_path), "sweep-1", live)

    copy = only(tmp_path)
    assert (copy.run.run_id, copy.run.run_group, copy.exit_code) == (name, "sweep-1", 0)
    assert copy.config["run"]["status"] == "done"
    phases = [row for row in copy.history if "progress/phase" in row]
    assert (phases[0]["progress/phase"], phases[0]["progress/total"]) == ("test items", 2)
    assert [row["search/round_best"] for row in copy.history if "search/round_best" in row] == [0.5]
    assert copy.summary["overlap/value"] == 0.75
    assert len(copy.table("examples")) == 2
    before = {path: path.read_bytes() for path in tmp_path.glob("wandb/offline-run-*/**/*") if path.is_file()}
    assert tracking.publish(tmp_path / "facts-caa", "sweep-1") == name
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_run_that_is_stopped_shows_as_one_that_crashed_and_is_replaced_later(tmp_path: Path) -> None:
    tracking, running = WandbTracking(), write_run(tmp_path, status="running", estimates={}, receipt=None)
    with pytest.raises(KeyboardInterrupt), tracking.live(running):
        raise KeyboardInterrupt
    assert only(tmp_path).exit_code == 1
    with tracking.live(running) as live:
        tracking.publish(write_run(tmp_path), live=live)
    assert only(tmp_path).exit_code == 0


def test_a_live_run_that_breaks_is_published_whole_all_the_same(tmp_path: Path) -> None:
    tracking, run = WandbTracking(), write_run(tmp_path)
    with tracking.live(run) as live:
        assert live is not None
        live.run.finish()  # as if W&B had gone away in the middle
        assert tracking.publish(run, live=live) is not None
    copy = only(tmp_path)
    assert (copy.summary["overlap/value"], copy.exit_code) == (0.75, 0)


def test_online_a_live_run_arrives_while_it_lasts(tmp_path: Path, server: Server) -> None:
    tracking = WandbTracking(entity="lab")
    running = write_run(tmp_path, status="running", estimates={}, receipt=None)
    with tracking.live(running) as live:
        assert server.runs[0]["displayName"] == "facts-caa"
        progress.report({"search/round_best": 0.5})
        tracking.publish(write_run(tmp_path), live=live)
    assert {run["name"] for run in server.runs} == {live.id if live else None}
    assert json.loads(server.files["wandb-summary.json"])["overlap/value"] == 0.75
    assert any("search/round_best" in line for line in server.history.values())


def test_table_has_a_row_for_every_example(tmp_path: Path) -> None:
    WandbTracking().publish(write_run(tmp_path))
    copy = only(tmp_path)
    first, second = copy.table("examples")
    assert first == {
        "example_id": "q1", "group": None, "question": "Where is q1?", "gold": "Bergen", "aliases": "Bjørgvin; BGO",
        "baseline_text": "in Oslo", "steered_text": "in Bergen", "finish": "stop", "overlap": 1, "correct": 1,
        "unscored": None, "parameters/strength": 2, "metadata/topic": "Places",
    }  # fmt: skip
    assert (second["correct"], second["unscored"]) == (None, "correct: the judge did not answer")
    (stored,) = copy.artifacts["run_table"].manifest.contents
    assert Path(stored.local_path).is_file()
    assert tmp_path in Path(stored.local_path).parents


def test_trial_curve_is_the_mean_best_so_far(tmp_path: Path) -> None:
    WandbTracking().publish(write_run(tmp_path))
    points = [row for row in only(tmp_path).history if "search/trials" in row]
    assert [point["search/trials"] for point in points] == [0, 1, 2, 3]
    assert [point["search/best_objective"] for point in points] == pytest.approx([0.3, 0.3, 0.5, 0.55])


def test_a_set_chosen_on_other_items_is_as_good_as_its_mean(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_lines(tmp_path / "generations" / "0123abcd" / "trials.jsonl", [
        {"example_id": f"dev{item}", "trial": trial, "objective": objective, "parameters": {}, "text": "", "terms": {}}
        for trial, objectives in enumerate([(0.0, 0.4), (1.0, 0.0), (0.1, 0.1)])
        for item, objective in enumerate(objectives)
    ])  # fmt: skip
    curve = read_publication(run, None).curve
    assert [trials for trials, _ in curve] == [1, 2, 3]
    assert [objective for _, objective in curve] == pytest.approx([0.2, 0.5, 0.5])  # not 0.2, 0.7, 0.7


def test_curve_ends_where_the_slowest_example_stopped(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    path = tmp_path / "generations" / "0123abcd" / "trials.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    assert [trials for trials, _ in read_publication(run, None).curve] == [0, 1, 2]


def test_items_that_the_estimates_leave_out_are_not_in_table_and_curve(tmp_path: Path) -> None:
    unselected = {"overlap": estimate("overlap", 0.5, 0.1, 2)}
    run = write_run(tmp_path, estimates_unselected_set=unselected)
    write_lines(
        run / "scores.jsonl", [{"example_id": "q1", "metric": "overlap", "value": 1.0, "reason": "", "details": {}}]
    )
    publication = read_publication(run, None)
    assert [row[0] for row in publication.rows] == ["q1"]
    assert publication.curve[-1] == (3, pytest.approx(0.6))
    assert publication.summary["unselected_set/overlap/value"] == 0.5


def test_columns_hold_one_type_even_if_the_records_do_not(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    path = tmp_path / "generations" / "0123abcd" / "generations.jsonl"
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    first["metadata"], second["metadata"] = {"year": 1911, "tags": ["a"]}, {"year": "unknown", "hard": True}
    write_lines(path, [first, second])
    assert WandbTracking().publish(run) is not None
    rows = only(tmp_path).table("examples")
    assert [row["metadata/year"] for row in rows] == ["1911", "unknown"]
    assert [row["metadata/hard"] for row in rows] == [None, "true"]


def test_a_run_without_search_scores_or_texts_is_published(tmp_path: Path) -> None:
    run = write_run(tmp_path, status="failed", error="ValueError: layer must be below 30", estimates={}, receipt=None)
    (run / "scores.jsonl").unlink()
    for name in ("generations.jsonl", "trials.jsonl"):
        (tmp_path / "generations" / "0123abcd" / name).unlink()
    assert WandbTracking().publish(run) is not None
    copy = only(tmp_path)
    assert (copy.exit_code, copy.run.notes) == (1, "ValueError: layer must be below 30")
    assert "examples" not in copy.summary


def test_publishing_again_changes_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    first = WandbTracking().publish(run, "sweep-1")
    before = {path: path.read_bytes() for path in tmp_path.glob("wandb/offline-run-*/**/*") if path.is_file()}
    assert WandbTracking().publish(run, "sweep-1") == first
    after = {path: path.read_bytes() for path in tmp_path.glob("wandb/offline-run-*/**/*") if path.is_file()}
    assert after == before


def test_changed_content_replaces_the_copy_under_the_same_id(tmp_path: Path) -> None:
    first = WandbTracking().publish(write_run(tmp_path))
    changed = info()["estimates"] | {"overlap": estimate("overlap", 0.8, 0.6, 2)}
    assert WandbTracking().publish(write_run(tmp_path, estimates=changed)) == first
    assert only(tmp_path).summary["overlap/value"] == 0.8


def test_a_killed_publication_is_made_anew(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    name = WandbTracking().publish(run)
    copy = next(tmp_path.glob(f"wandb/offline-run-*/run-{name}.wandb"))
    copy.write_bytes(copy.read_bytes()[:200])
    (tmp_path / "wandb" / "published" / f"{name}.json").unlink()
    assert WandbTracking().publish(run) == name
    assert only(tmp_path).summary["overlap/value"] == 0.75


def test_a_deleted_copy_is_made_anew(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    name = WandbTracking().publish(run)
    next(tmp_path.glob(f"wandb/offline-run-*/run-{name}.wandb")).unlink()
    assert WandbTracking().publish(run) == name
    assert only(tmp_path).exit_code == 0


def test_equal_generations_scored_in_two_ways_are_two_runs(tmp_path: Path) -> None:
    first = WandbTracking().publish(write_run(tmp_path))
    second = WandbTracking().publish(write_run(tmp_path, name="facts-caa-judged"))
    assert [copy.run.run_id for copy in read_offline(tmp_path)] == sorted([first, second])
    assert first != second


def test_the_own_group_comes_before_the_sweeps(tmp_path: Path) -> None:
    WandbTracking(group="paper").publish(write_run(tmp_path), "sweep-1")
    assert only(tmp_path).run.run_group == "paper"


def test_report_is_published_to_look_at_and_to_download(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert WandbTracking().publish_report(page, "sweep-1") is None
    page.write_text("<!doctype html><p>Løvdahl</p>", encoding="utf-8")
    name = WandbTracking().publish_report(page, "sweep-1")
    copy = only(tmp_path)
    assert (copy.run.run_id, copy.run.run_group, copy.run.job_type) == (name, "sweep-1", "report")
    assert (copy.folder / "files" / copy.summary["comparison"]["path"]).read_text("utf-8") == page.read_text("utf-8")
    (stored,) = copy.artifacts["report"].manifest.contents
    assert stored.path == "report.html"
    assert Path(stored.local_path).read_text("utf-8") == page.read_text("utf-8")
    assert WandbTracking().publish_report(page, "sweep-1") == name
    assert len(read_offline(tmp_path)) == 1


def test_no_output_and_no_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
    assert WandbTracking().publish(write_run(tmp_path)) is not None
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_offline_copies_do_not_touch_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        log_in(monkeypatch)
        wandb.teardown()
        assert WandbTracking(mode="offline").publish(write_run(tmp_path)) is not None
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_online_a_run_arrives_whole_and_leaves_no_offline_copy(
    tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path)
    assert WandbTracking(entity="lab", mode="offline").publish(run, "sweep-1") is not None
    assert server.requests == 0

    name = WandbTracking(entity="lab").publish(run, "sweep-1")
    first = server.runs[0]
    assert (first["name"], first["project"], first["entity"]) == (name, "steering", "lab")
    assert (first["groupName"], first["jobType"], first["displayName"]) == ("sweep-1", "caa", "facts-caa")
    assert [json.loads(server.history[step])["search/trials"] for step in range(4)] == [0, 1, 2, 3]
    assert json.loads(server.files["wandb-summary.json"])["overlap/value"] == 0.75
    assert {artifact["artifactTypeName"] for artifact in server.artifacts} == {"run_table", "trials"}
    assert any(path.startswith("media/table/examples_") for path in server.files)
    assert read_offline(tmp_path) == []
    assert capfd.readouterr() == ("", "")

    before = server.requests
    assert WandbTracking(entity="lab").publish(run, "sweep-1") == name
    assert server.requests == before


def test_online_publishing_changed_content_writes_the_same_run_from_its_first_line(
    tmp_path: Path, server: Server
) -> None:
    name = WandbTracking(entity="lab").publish(write_run(tmp_path))
    server.history.clear()
    assert WandbTracking(entity="lab").publish(write_run(tmp_path, derived={"f1": 0.5})) == name
    assert {run["name"] for run in server.runs} == {name}
    assert 0 in server.history
    assert json.loads(server.files["wandb-summary.json"])["derived/f1"] == 0.5


@pytest.mark.parametrize("step", ["UpsertBucket", "Viewer"])
def test_a_server_that_refuses_at_the_start_or_half_way_costs_one_warning(
    tmp_path: Path, server: Server, step: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server.refuses = step
    assert WandbTracking(entity="lab", mode="online", timeout=5).publish(write_run(tmp_path)) is None
    assert "facts-caa was not published to W&B" in one_warning(caplog)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.glob("wandb/run-*")) == []


def test_disabled_and_none_write_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert WandbTracking(mode="disabled").publish(run) is None
    assert Tracking().publish(run, "sweep-1") is None
    assert Tracking().publish_report(run / "run.json") is None
    assert not (tmp_path / "wandb").exists()


def one_warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING and r.name.startswith("harness")]
    assert "\n" not in record.getMessage()
    return record.getMessage()


def test_an_unreachable_server_costs_one_warning_and_keeps_the_offline_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run(tmp_path)
    name = WandbTracking().publish(run)
    log_in(monkeypatch)
    wandb.teardown()
    assert WandbTracking(mode="online", timeout=1).publish(run) is None
    assert "facts-caa was not published to W&B: CommError" in one_warning(caplog)
    assert only(tmp_path).run.run_id == name
    assert list(tmp_path.glob("wandb/run-*")) == []


def test_auto_goes_offline_once_if_the_server_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log_in(monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "online")
    first = WandbTracking(timeout=1).publish(write_run(tmp_path))
    second = WandbTracking(timeout=1).publish(write_run(tmp_path, name="facts-other"))
    assert "wandb sync" in one_warning(caplog)
    assert [copy.run.run_id for copy in read_offline(tmp_path)] == sorted([first, second])


def test_a_place_that_cannot_be_written_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path)
    (tmp_path / "wandb").write_text("in the way")
    assert WandbTracking().publish(run) is None
    assert "was not published to W&B" in one_warning(caplog)


def test_a_missing_wandb_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run(tmp_path)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "wandb", None)
        assert WandbTracking().publish(run) is None
    assert "wandb" in one_warning(caplog)


@pytest.mark.parametrize("content", ["{", '{"name": "facts-caa", "config": 3}'])
def test_a_broken_run_directory_costs_one_warning(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run(tmp_path)
    (run / "run.json").write_text(content)
    assert WandbTracking().publish(run) is None
    assert "was not published to W&B" in one_warning(caplog)
    assert read_offline(tmp_path) == []


def test_auto_is_online_only_with_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wanted_mode() == "offline"

    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1:9\n  login user\n  password {'b' * 40}\n")
    netrc.chmod(0o600)
    assert is_logged_in()
    assert wanted_mode() == "online"

    netrc.unlink()
    assert not is_logged_in()
    log_in(monkeypatch)
    assert wanted_mode() == "online"

    for asked, mode in {
        "offline": "offline",
        "dryrun": "offline",
        "disabled": "disabled",
        "nonsense": "online",
    }.items():
        monkeypatch.setenv("WANDB_MODE", asked)
        assert wanted_mode() == mode


def test_wrong_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"tracking\.mode must be one of auto, offline, online, disabled, got 'on'"):
        WandbTracking(mode="on")
    with pytest.raises(ValueError, match=r"tracking\.timeout must be above 0 seconds, got 0"):
        WandbTracking(timeout=0)
