"""`python -m harness.score RUN… evaluator=…`: score finished runs again, from the generations that lie on disk."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.build import Scoring, build_scoring
from harness.config import explain
from harness.evaluate import describe, evaluate
from harness.generate import stored_records, stored_trials
from harness.records.store import GenerationStore, read_json, write_json
from harness.report.runs import StoredRun, generations_directory, read_run
from harness.run import evaluation_key, lazy_tools, optimised_by_scoring, scored, usual_name
from harness.scorer import open_subject, scorer_identity
from harness.scoring import Record, Scorer
from harness.subject.load import load_model

CHANGEABLE = ("evaluator", "judge", "scorer", "tracking", "scored_trials", "name")


def main(arguments: Sequence[str] | None = None) -> int:
    """Score every run; exit status 0 if all could be scored, 1 if not, 2 if nothing was tried."""
    given = _parser().parse_args(arguments)
    runs = [Path(item) for item in given.items if "=" not in item]
    overrides = [item for item in given.items if "=" in item]
    try:
        _check(runs, overrides)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failures = [path for path in runs if not _attempt(path, overrides)]
    return 1 if failures else 0


def _check(runs: Sequence[Path], overrides: Sequence[str]) -> None:
    if not runs:
        raise ValueError("give at least one run's folder, e.g. python -m harness.score runs/NAME evaluator=perplexity")
    wrong = [item for item in overrides if _group(item) not in CHANGEABLE]
    if wrong:
        raise ValueError(f"only {', '.join(CHANGEABLE)} can be changed when scoring again, got {wrong[0]}")
    if len(runs) > 1 and any(_group(item) == "name" for item in overrides):
        raise ValueError(f"name can be given for one run, got {len(runs)} runs")


def _group(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0]


def _attempt(path: Path, overrides: Sequence[str]) -> bool:
    try:
        folder, info = score(path, overrides)
    except Exception as error:  # one run must not stop the others
        print(f"error: {path}: {explain(error)}", file=sys.stderr)
        return False
    if info["status"] != "done":
        print(f"error: {folder}: {info['error']}", file=sys.stderr)
        return False
    print(f"wrote {folder}")
    return True


def score(path: Path, overrides: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """Score a run's generations as its own command says, changed by overrides; the subject is not needed.

    Args:
        path: the run's folder.
        overrides: new settings of evaluators, judge, scorer, tracking, scored trials or name.

    Returns:
        The new run's folder, beside the old one, and the content of its run.json. Where that run is there already, it
        is left as it is.

    Raises:
        ValueError: the run has no generations to score, or a setting is wrong.
    """
    old = read_run(path)
    source = generations_directory(path, old.info)
    if not old.info.get("generations") or not (source / "meta.json").is_file():
        raise ValueError("this run made no generations that could be scored; repeat its own command")
    merged = changed(shlex.split(old.info["provenance"]["command"])[3:], overrides)
    scoring = build_scoring(merged)
    key = _key(old, scoring, read_json(source / "meta.json"))
    folder = path.parent / (_given_name(overrides) or usual_name(old.info["labels"], key))
    earlier = read_json(folder / "run.json")
    if earlier is not None and earlier.get("key") != key:
        raise ValueError(f"name: {folder} holds another run (key {earlier.get('key')}); choose another name")
    if earlier is None or earlier["status"] != "done":
        earlier = _described(old, scoring, key, folder, merged) | _scored(
            old, scoring, GenerationStore(source, {}), folder
        )
        write_json(folder / "run.json", earlier)
    scoring.tracking.publish(folder)
    return folder, earlier


def changed(command: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """A run's overrides with new ones added; a group that is chosen anew forgets what was set inside the old choice."""
    chosen = {_group(item) for item in overrides if item.partition("=")[0] == _group(item)} | {"name"}
    kept = [item for item in command if _group(item) not in chosen]
    return [*kept, *overrides]


def _given_name(overrides: Sequence[str]) -> str | None:
    names = [item.partition("=")[2] for item in overrides if item.startswith("name=")]
    return names[-1] if names else None


def _key(old: StoredRun, scoring: Scoring, made_from: Mapping[str, Any]) -> str:
    needed = any("scorer" in evaluator.needs for evaluator in scoring.evaluators.values())
    scorer = scorer_identity(scoring.scorer, scoring.model) if needed else None
    # Which examples count was decided when the run was made, and stays so.
    subset = old.node("subset").get("decision", ["all"])
    return evaluation_key(made_from, scoring.evaluators, scoring.judge, scorer, subset, scoring.scored_trials)


def _described(old: StoredRun, scoring: Scoring, key: str, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    command = "python -m harness " + " ".join(map(shlex.quote, overrides))
    return {
        **old.info,
        "key": key,
        "name": folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": {**old.info["config"], **scoring.config},
        "labels": {**old.info["labels"], **scoring.labels},
        "evaluators": describe(scoring.evaluators),
        "optimised_metrics": _optimised(old, scoring),
        "provenance": {**old.info["provenance"], "command": command, "scored_again_from": old.name},
    }


def _optimised(old: StoredRun, scoring: Scoring) -> list[str]:
    """The metrics that were chosen by, knowing the answers: those of the search, or all where the best trial counts."""
    if not old.info["optimised_metrics"]:
        return []
    if scoring.scored_trials == "best":
        return optimised_by_scoring(scoring.evaluators)
    return sorted({term["metric"] for term in old.info["config"]["objective"]["terms"]})


def _scored(old: StoredRun, scoring: Scoring, store: GenerationStore, folder: Path) -> dict[str, Any]:
    records = stored_records(store)
    counted = set(old.node("subset").get("ids", old.examples))
    chosen = [record for record in records if record.example.id in counted]
    _check_options(chosen, scoring)
    tools = lazy_tools(lambda: _open_scorer(scoring), scoring.judge)
    seed = old.info["config"]["seed"]
    trials = stored_trials(store.folder, records) if scoring.scored_trials == "best" else None
    evaluation = evaluate(chosen, scoring.evaluators, tools, seed, trials)
    result = {"scored_trials": "best" if trials else "selected"} | scored(
        folder, evaluation, scoring.evaluators, scoring.judge, store.cost()
    )
    if len(chosen) < len(records):
        everything = evaluate(records, scoring.evaluators, tools, seed, trials).estimates
        result["estimates_unselected_set"] = {name: dataclasses.asdict(e) for name, e in everything.items()}
    return result


def _check_options(records: Sequence[Record], scoring: Scoring) -> None:
    wanted = [name for name, evaluator in scoring.evaluators.items() if evaluator.choices]
    if wanted and not any(record.example.choices for record in records):
        raise ValueError(f"evaluator {wanted[0]} scores options; the records of this run have none")


def _open_scorer(scoring: Scoring) -> Scorer:
    return scoring.scorer.around(open_subject(load_model(scoring.scorer.model_of(scoring.model))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.score",
        description="Score finished runs again from what lies on disk; the result is a new run beside the old one.",
        epilog=f"Settings that may change: {', '.join(CHANGEABLE)}; everything else stays as the run had it.",
    )
    parser.add_argument(
        "items", nargs="+", metavar="RUN|OVERRIDE", help="runs' folders, and overrides such as judge=local"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
