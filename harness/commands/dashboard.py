"""`python -m harness.dashboard --entity E --project P`: write a W&B report over the runs that were published there.

The report keeps deployable and oracle results apart, as every comparison here does, and shows one bar for each run:
nothing is averaged over models, tasks or settings. Intervals stand in the table of runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from harness.commands.parser import OneLineParser
from harness.records.tracking import BEST_OBJECTIVE, REPORT, TABLE, TRIALS
from harness.records.wandb_run import is_logged_in

METRICS = ("overlap", "correct", "perplexity", "repetition")
SECTIONS = (
    ("Deployable", False, "Nothing here was shown the answer of the question that it was tested on."),
    (
        "Oracle",
        True,
        "Method, search or control saw the answer of the test item: what steering could reach, not a rank.",
    ),
)
COSTS = ("cost/forward_tokens", "cost/seconds")
WIDTH, MOST_RUNS = 24, 50
TITLE = "Steering methods"
INTRODUCTION = (
    "One bar is one run. Hold differences against the intervals in the tables of runs (95 %) and against the paired "
    "tests of the comparison's own page at the end. Equal trial budgets are not checked here: see the run's config."
)


def _workspaces() -> Any:
    """The library of report blocks: optional, and untyped, as its own annotations do not hold."""
    return import_module("wandb_workspaces.reports.v2")


def report(entity: str, project: str, metrics: Sequence[str] = METRICS, *, bound: bool = True) -> Any:
    """The template, filled in for a project.

    Args:
        entity: user or team.
        project: the project that holds the runs.
        metrics: metrics to show; the first one orders the runs, best (highest) first.
        bound: tie the tables of runs to the project, which asks the server for it; False needs no server.

    Raises:
        ValueError: the project does not exist.
    """
    wr = _workspaces()
    place = {"entity": entity, "project": project} if bound else {}
    blocks: list[Any] = [wr.P(INTRODUCTION)]
    for name, oracle, text in SECTIONS:
        blocks += [wr.H2(name), wr.P(text), _section(_runset(name, oracle, metrics, place), metrics)]
    pages = wr.Runset(name="Comparisons", filters=f"Metric('JobType') = '{REPORT}'", **place)
    page = wr.MediaBrowser(title="Comparison", media_keys=["comparison"], layout=wr.Layout(w=WIDTH, h=24))
    blocks += [wr.H2("Comparison"), wr.PanelGrid(runsets=[pages], panels=[page], hide_run_sets=True)]
    return wr.Report(entity=entity, project=project, title=TITLE, width="fluid", blocks=blocks)


def _runset(name: str, oracle: bool, metrics: Sequence[str], place: dict[str, str]) -> Any:
    wr = _workspaces()
    columns = [f"summary:{metric}/{field}" for metric in metrics for field in ("value", "low", "high", "num_unscored")]
    return wr.Runset(
        name=name,
        filters=f"Config('oracle') = {oracle} and Metric('JobType') != '{REPORT}' and Metric('State') = 'finished'",
        order=[wr.OrderBy(wr.SummaryMetric(f"{metrics[0]}/value"), ascending=False)],
        pinned_columns=["run:displayName", *columns],
        **place,
    )


def _section(runset: Any, metrics: Sequence[str]) -> Any:
    wr = _workspaces()
    panels: list[Any] = [
        wr.BarPlot(
            title=name.removesuffix("/value"),
            metrics=[wr.SummaryMetric(name)],
            max_runs_to_show=MOST_RUNS,
            max_bars_to_show=MOST_RUNS,
        )
        for name in (*(f"{metric}/value" for metric in metrics), *COSTS)
    ]

    panels.append(
        wr.LinePlot(
            title="search: mean best objective so far",
            x=TRIALS,
            y=[BEST_OBJECTIVE],
            title_x="trials per prompt",
            smoothing_factor=0,
            max_runs_to_show=MOST_RUNS,
        )
    )
    panels.append(wr.WeavePanelSummaryTable(table_name=TABLE, layout=wr.Layout(w=WIDTH, h=12)))
    return wr.PanelGrid(runsets=[runset], panels=panels)


def apply(template: Any, url: str | None) -> str:
    """Save a report: a new one, or over the content of the one at a URL. Returns its URL."""
    if url is not None:
        earlier = _workspaces().Report.from_url(url)
        earlier.blocks, earlier.width = template.blocks, template.width
        template = earlier
    return template.save().url


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report, or print it; exit status 0, or 2 and one line if it could not be done."""
    options = _parser().parse_args(arguments)
    try:
        metrics = options.metric or METRICS
        if options.dry_run:
            print(specification(report(options.entity, options.project, metrics, bound=False)))
            return 0
        if not is_logged_in():
            raise PermissionError("not logged in to W&B: run `wandb login` or set WANDB_API_KEY")
        print(apply(report(options.entity, options.project, metrics), options.update))
    except ModuleNotFoundError as error:
        print(f"dashboard: {error.name} is missing: pip install 'steering-harness[dashboards]'", file=sys.stderr)
        return 2
    except Exception as error:  # the server's errors are of many kinds, and none needs a traceback here
        print(f"dashboard: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def specification(template: Any) -> str:
    """The report as the JSON that would be saved."""
    content = template._to_model().model_dump(by_alias=True, exclude_none=True, mode="json")
    return json.dumps(content, indent=1, ensure_ascii=False)


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m harness.dashboard", description=__doc__)
    parser.add_argument("--entity", required=True, help="W&B user or team")
    parser.add_argument("--project", required=True, help="W&B project that holds the runs")
    parser.add_argument(
        "--metric", action="append", default=[], metavar="NAME",
        help=f"metric to show, repeatable (default: {', '.join(METRICS)})",
    )  # fmt: skip
    parser.add_argument("--update", metavar="URL", help="replace the content of this report instead of adding one")
    parser.add_argument("--dry-run", action="store_true", help="print what would be saved as JSON; needs no login")
    return parser
