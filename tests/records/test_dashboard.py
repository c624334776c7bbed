import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb_server import serving

from harness.commands.dashboard import main

ARGUMENTS = ["--entity", "lab", "--project", "steering"]


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def specification(capsys: pytest.CaptureFixture[str]) -> Any:
    pytest.importorskip("wandb_workspaces", reason="needs the extra 'dashboards'")
    assert main([*ARGUMENTS, "--metric", "overlap", "--metric", "accurate", "--dry-run"]) == 0
    return json.loads(capsys.readouterr().out)


pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # wandb-workspaces' own


def grids(specification: Any) -> list[Any]:
    return [block["metadata"] for block in specification["spec"]["blocks"] if block["type"] == "panel-grid"]


def panels(grid: Any, kind: str) -> list[Any]:
    return [panel for panel in grid["panelBankSectionConfig"]["panels"] if panel["viewType"] == kind]


def test_deployable_and_oracle_runs_never_share_a_chart(specification: Any) -> None:
    assert specification["project"] == {"name": "steering", "entityName": "lab"}
    sides = []
    for grid in grids(specification)[:2]:
        (runset,) = grid["runSets"]
        conditions = {item["key"]["name"]: (item["op"], item["value"]) for item in runset["filters"]["filters"]}
        assert conditions["jobType"] == ("!=", "report")
        assert conditions["state"] == ("=", "finished")
        sides.append((runset["name"], conditions["oracle"]))
    assert sides == [("Deployable", ("=", False)), ("Oracle", ("=", True))]


def test_every_metric_has_a_chart_and_its_interval_in_the_table_of_runs(specification: Any) -> None:
    for grid in grids(specification)[:2]:
        shown = [metric for bar in panels(grid, "Bar Chart") for metric in bar["config"]["metrics"]]
        assert shown[:2] == ["summary_metrics.overlap/value", "summary_metrics.accurate/value"]
        assert not any(bar["config"].get("groupBy") for bar in panels(grid, "Bar Chart"))
        columns = grid["runSets"][0]["runFeed"]["columnPinned"]
        assert {"summary:accurate/low", "summary:accurate/high", "summary:accurate/num_unscored"} <= set(columns)


def test_trial_curves_examples_and_comparison_are_where_tracking_puts_them(specification: Any) -> None:
    first, _, last = grids(specification)
    (line,) = panels(first, "Run History Line Plot")
    assert (line["config"]["xAxis"], line["config"]["metrics"]) == ("search/trials", ["search/best_objective"])
    (table,) = panels(first, "Weave")
    assert '"examples"' in json.dumps(table)
    (page,) = panels(last, "Media Browser")
    assert page["config"]["mediaKeys"] == ["comparison"]


def test_the_report_is_saved_and_an_earlier_one_is_replaced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb_workspaces", reason="needs the extra 'dashboards'")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb.teardown()
        assert main(ARGUMENTS) == 0
        url = capsys.readouterr().out.strip()
        (view,) = server.views
        assert url == f"{server.url}/lab/steering/reports/Steering-methods--{view}"
        grid = grids({"spec": json.loads(server.views[view]["spec"])})[0]
        assert grid["runSets"][0]["project"]["id"] == "P1"

        assert main([*ARGUMENTS, "--metric", "accurate", "--update", url]) == 0
        assert list(server.views) == [view]
        assert "accurate/value" in server.views[view]["spec"]
        assert "overlap/value" not in server.views[view]["spec"]

        server.refuses = "upsertView"
        assert main(ARGUMENTS) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("dashboard: ")
        wandb.teardown()


def test_without_login_one_line_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ARGUMENTS) == 2
    assert capsys.readouterr() == ("", "dashboard: not logged in to W&B: run `wandb login` or set WANDB_API_KEY\n")


def test_without_the_library_one_line_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.delitem(sys.modules, "wandb_workspaces.reports.v2", raising=False)
    assert main([*ARGUMENTS, "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "pip install 'steering-harness[dashboards]'" in err
