"""`python -m harness.score RUN… evaluator=…`: score finished runs again, from the generations that lie on disk.

A run's folder may come from somebody else. So nothing of it is run: its settings are read as values, a class that it
names must be of the right kind and of an installed package (or of one that the command line names with
``hydra.searchpath=[pkg://PACKAGE.conf]``), and it cannot switch on code of a model.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from harness.build import built_evaluators, check_folder_name
from harness.checks import check_scoring
from harness.commands.parser import OneLineParser
from harness.config import composed, explain, parsed_setting, plain_values
from harness.evaluate import score_run
from harness.job import Scoring
from harness.nodes import Packages, built, installed_packages
from harness.protocol import Protocol
from harness.records.keys import Keys
from harness.records.locks import locked
from harness.records.rows import Selected
from harness.records.run import Labels, RunRecord
from harness.records.store import GenerationStore
from harness.records.stored import StoredRun, read_run
from harness.records.tracking import Tracking
from harness.run import earlier_record, folder_for
from harness.scoring import Judge
from harness.subject.load import ModelConfig, ResolvedModel, resolve
from harness.subject.scorers import ScorerChoice

CHANGEABLE = ("evaluator", "judge", "scorer", "protocol", "tracking", "name")
_NODES = CHANGEABLE[:-1]
_SEARCH_PATH = "hydra.searchpath="
_LOCK_WAIT_SECONDS = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Score every run; exit status 0 if all could be scored, 1 if not, 2 if nothing was tried."""
    given = _parser().parse_args(arguments)
    runs = [Path(item) for item in given.items if "=" not in item or Path(item).is_dir()]
    settings = [item for item in given.items if Path(item) not in runs]
    search_path = [item for item in settings if item.startswith(_SEARCH_PATH)]
    overrides = [item for item in settings if item not in search_path]

    try:
        _check(runs, overrides)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failures = [path for path in runs if not _attempt(path, overrides, search_path)]
    return 1 if failures else 0


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m harness.score",
        description="Score finished runs again from what lies on disk; the result is a new run beside the old one.",
        epilog=f"Settings that may change: {', '.join(CHANGEABLE)}; everything else stays as the run had it.",
    )
    parser.add_argument(
        "items", nargs="+", metavar="RUN|OVERRIDE", help="runs' folders, and overrides such as judge=local"
    )
    return parser


def _check(runs: Sequence[Path], overrides: Sequence[str]) -> None:
    if not runs:
        raise ValueError("give at least one run's folder, e.g. python -m harness.score runs/NAME evaluator=perplexity")
    for item in overrides:
        if _group(item) not in CHANGEABLE:
            raise ValueError(f"only {', '.join(CHANGEABLE)} can be changed when scoring again, got {item}")
    if len(runs) > 1 and any(_group(item) == "name" for item in overrides):
        raise ValueError(f"name can be given for one run, got {len(runs)} runs")
    check_folder_name("name", _given_name(overrides))


def _group(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0]


def _attempt(path: Path, overrides: Sequence[str], search_path: Sequence[str]) -> bool:
    try:
        folder, record = score(path, overrides, search_path)
    except Exception as error:  # one run must not stop the others
        print(f"error: {path}: {explain(error)}", file=sys.stderr)
        return False
    for name, estimate in record.estimates.items():
        value = "unscored" if estimate.value is None else f"{estimate.value:.3f}"
        print(f"{record.name}  {name} {value}  ({estimate.num_scored} scored, {estimate.num_unscored} unscored)")
    if record.status != "done":
        print(f"error: {folder}: {record.error}", file=sys.stderr)
        return False
    print(f"wrote {folder}")
    return True


def score(path: Path, overrides: Sequence[str], search_path: Sequence[str] = ()) -> tuple[Path, RunRecord]:
    """Score a run's generations with its own settings, changed by overrides; the model under study is not needed.

    Args:
        path: the run's folder.
        overrides: new settings of evaluators, judge, scorer, protocol, tracking or name.
        search_path: ``hydra.searchpath=…``, where further YAMLs lie; packages named there are trusted.

    Returns:
        The new run's folder, beside the old one, and its record. Where that run is there already, it is left as it is.

    Raises:
        ValueError: the run has no generations to score, or a setting is wrong.
    """
    old = read_run(path)
    store = GenerationStore(old.generations_folder)
    meta = store.meta
    if old.record.generations is None or meta is None or not meta["files"]:
        raise ValueError("this run made no generations that could be scored; repeat its own command")
    packages = installed_packages() | set(re.findall(r"pkg://(\w+)", " ".join(search_path)))
    config, labels = _changed(old.record, overrides, search_path)
    find_subject = _no_subject if old.record.provenance.imported_from else None
    scoring = _scoring(config, labels, packages, find_subject)
    _check_options(list(old.selected.values()), scoring)

    # Which examples count was decided when the run was made, and stays so.
    decided_by = list(old.record.subset.decided_by) if old.record.subset else ["all"]
    counted_by = [*decided_by[:1], scoring.protocol.scored_trials, *decided_by[2:]]
    keys = Keys.of(meta["made_from"], scoring.identity, counted_by)
    name = _given_name(overrides)
    folder = path.parent / name if name else folder_for(path.parent, labels, keys.run, overrides)
    with locked(folder, _LOCK_WAIT_SECONDS):
        record = earlier_record(folder, keys.run)
        if record is None or record.status != "done":
            begun = _begun(
                old, folder.name, keys, config, labels, ["python", "-m", "harness.score", str(path), *overrides]
            )
            record = score_run(
                begun, folder, scoring, store, list(old.selected.values()),
                lambda: scoring.scorer.open(scoring.scoring_model, None),
            )  # fmt: skip
            record.write(folder)
        tracking = built(config["tracking"], Tracking, "tracking", packages=packages)
        tracking.publish(folder)
    return folder, record


def _given_name(overrides: Sequence[str]) -> str | None:
    names = [parsed_setting(item)[1] for item in overrides if item.startswith("name=")]
    return built(names[-1], str | None, "name") if names else None


def _changed(record: RunRecord, overrides: Sequence[str], search_path: Sequence[str]) -> tuple[dict[str, Any], Labels]:
    """The run's configuration and labels with the overrides applied.

    A node that is chosen anew (``judge=local``) comes whole from its YAML; a single setting (``judge.model=…``) is
    changed inside what the run had.
    """
    config = copy.deepcopy(record.config)
    labels = record.labels

    for node in _NODES:
        own = [item for item in overrides if _group(item) == node]
        if any(item.partition("=")[0] == node for item in own):
            chosen, choices = composed([*own, *search_path])
            config[node] = plain_values(chosen)[node]
            if node in Labels.model_fields:
                labels = labels.model_copy(update={node: str(choices[node])})
            continue
        for item in own:
            _set(config, item)
    return config, labels


def _set(config: dict[str, Any], item: str) -> None:
    """Change one setting that is there."""
    (*path, last), value = parsed_setting(item)
    node: Any = config
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    if not isinstance(node, dict) or last not in node:
        raise ValueError(f"there is no option {'.'.join([*path, last])} in this run")
    node[last] = value


def _scoring(
    config: Mapping[str, Any],
    labels: Labels,
    packages: Packages,
    find_subject: Callable[[], ResolvedModel] | None = None,
) -> Scoring:
    """What scores, from a run's configuration.

    Args:
        config: the configuration.
        labels: of the run.
        packages: whose classes it may name.
        find_subject: tells which model is under study; None finds it in the configuration.
    """
    parts = {
        name: built(config[name], kind, name, packages=packages)
        for name, kind in (("judge", Judge), ("scorer", ScorerChoice), ("protocol", Protocol))
    }

    if find_subject is None:
        configured = built(config["model"], ModelConfig, "model", packages=packages)
        model = dataclasses.replace(configured, trust_remote_code=False)
        find_subject = partial(resolve, model)

    evaluators = built_evaluators(config["evaluator"], packages)
    scoring = Scoring(**parts, evaluators=evaluators, find_subject=find_subject, seed=int(config["seed"]))
    check_scoring(scoring, labels.judge)
    return scoring


def _no_subject() -> ResolvedModel:
    raise ValueError(
        "these texts were imported, so the model that wrote them is not here: name the one that says how likely they "
        "are (scorer=gpt2, or scorer=gpt2 scorer.model.id=OWNER/NAME), or leave evaluator perplexity out"
    )


def _check_options(selected: Sequence[Selected], scoring: Scoring) -> None:
    of_options = [name for name, evaluator in scoring.evaluators.items() if evaluator.choices]
    if of_options and not any(item.record.example.choices for item in selected):
        raise ValueError(f"evaluator {of_options[0]} scores options; the records of this run have none")


def _begun(
    old: StoredRun, name: str, keys: Keys, config: dict[str, Any], labels: Labels, command: Sequence[str]
) -> RunRecord:
    provenance = old.record.provenance.model_copy(
        update={"command": shlex.join(command), "scored_again_from": old.name}
    )

    changes = {
        "key": keys.run,
        "entry": keys.entry,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "running",
        "config": config,
        "labels": labels,
        "provenance": provenance,
    }
    return old.record.model_copy(update=changes)
