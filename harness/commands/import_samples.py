"""`python -m harness.import_samples LABEL=PATH… out=DIR`: other harnesses' scores, item by item, as runs.

PATH is what lm-evaluation-harness wrote with ``--log_samples`` (a folder or a ``samples_*.jsonl``) or a log of Inspect
(``.eval``, ``.json``, or a folder of them). Each task gives one run per label; `python -m harness.compare DIR` pairs
them by item. Scores are taken over as they stand.
"""

from __future__ import annotations

import hashlib
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from harness.bridges.sampled import Reported, Sampled, read_lm_eval
from harness.commands.import_ import IMPORTED, folder_of, imported_config, stated_access
from harness.commands.parser import OneLineParser
from harness.config import explain
from harness.data import Access
from harness.evaluate import evaluate
from harness.records.keys import Keys, key_of
from harness.records.lines import mark_of, replaced, write_lines
from harness.records.locks import locked
from harness.records.provenance import commit, versions
from harness.records.rows import Selected, score_row
from harness.records.run import SCORES_FILE, EvaluatorNote, Labels, Provenance, RunRecord
from harness.records.store import GenerationStore
from harness.run import earlier_record, folder_for
from harness.scoring import Metric, Tools

_LOCK_WAIT_SECONDS = 60.0
_BASELINE = "baseline"
_ABOUT = "Make runs that can be compared from what lm-evaluation-harness or Inspect wrote about each item."


def main(arguments: Sequence[str] | None = None) -> int:
    """Import; exit status 0, or 2 with one line that says what is wrong, and nothing written."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_intermixed_args(given)
    try:
        out = folder_of(next((item for item in options.items if item.startswith("out=")), ""))
        files = _read_all([item for item in options.items if not item.startswith("out=")])
        for of_task in files.values():
            _refuse_other_items(of_task)
        access = _access_of(files, options.access)
        command = ["python", "-m", "harness.import_samples", *given]
        for of_task in files.values():
            metrics = _metrics(of_task, options.lower_is_better)
            for label, sampled in of_task.items():
                folder = _written(out, label, sampled, metrics, access[label, sampled.task], options.model, command)
                print(f"wrote {folder}: {len(sampled.records)} items of {sampled.task} by {label}")
    except (ValueError, OSError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2

    for name, reason in sorted(_left_out(files)):
        print(f"left out {name}: {reason}")
    print(f"next: python -m harness.compare {out}")
    return 0


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m harness.import_samples", description=_ABOUT)
    parser.add_argument(
        "items", nargs="+", metavar="LABEL=PATH … out=DIR",
        help=f"who wrote which files; the un-steered model is called {_BASELINE}; and where runs lie",
    )  # fmt: skip
    parser.add_argument(
        "--access", action="append", default=[], metavar="LABEL=LIST",
        help=f"what a method was shown besides the question: none, or some of {','.join(Access)}; neither said here "
        "nor in the file, it counts as having seen the answers",
    )  # fmt: skip
    parser.add_argument("--model", metavar="LABEL", help="the model's name in tables, where files name it differently")
    parser.add_argument(
        "--lower-is-better", action="append", default=[], metavar="METRIC",
        help="a metric of Inspect's to be lowered; lm-evaluation-harness says it itself",
    )  # fmt: skip
    return parser


def _read_all(items: Sequence[str]) -> dict[str, dict[str, Sampled]]:
    """What stands in the files, by task and label."""
    files: dict[str, dict[str, Sampled]] = {}
    for item in items:
        label, equals, path = item.partition("=")
        if not equals or not label or not path:
            raise ValueError(f"say which files belong to which method with LABEL=PATH, got {item}")

        for sampled in _read(Path(path)):
            of_task = files.setdefault(sampled.task, {})
            if label in of_task:
                raise ValueError(
                    f"{label} has two files of task {sampled.task}: {of_task[label].origin} and {sampled.origin}; name "
                    "the one that counts, or give each a label of its own"
                )
            # Pairs against it would say nothing about steering.
            if label == _BASELINE and sampled.steering:
                raise ValueError(
                    f"{sampled.origin} was written by a steered model ({sampled.steering}): not a baseline"
                )
            of_task[label] = sampled

    if not files:
        raise ValueError("give at least one LABEL=PATH, such as baseline=logs/plain caa=logs/caa")
    return files


def _read(path: Path) -> list[Sampled]:
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    files = [path]
    if path.is_dir():
        files = sorted(path.rglob("samples_*.jsonl")) or sorted(path.rglob("*.eval"))
    if not files:
        raise ValueError(f"{path} holds no samples_*.jsonl of lm-evaluation-harness and no .eval of Inspect")
    return [_reader(file)(file) for file in files]


def _reader(file: Path) -> Callable[[Path], Sampled]:
    if file.suffix == ".jsonl":
        return read_lm_eval
    if file.suffix not in (".eval", ".json"):
        raise ValueError(f"{file} must end in .jsonl (lm-evaluation-harness), .eval or .json (Inspect)")
    try:
        from harness.bridges.inspect_log import read_inspect
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "inspect_ai":
            raise
        raise ValueError(f"{file}: inspect_ai is not installed: pip install 'steering-harness[inspect]'") from error
    return read_inspect


def _refuse_other_items(of_task: Mapping[str, Sampled]) -> None:
    """Raise ValueError unless all labels answered the same items, in the same words."""
    (first, ours), *others = of_task.items()
    asked = {record.example.id: record for record in ours.records}
    for label, theirs in others:
        start = f"task {ours.task}: {first} and {label}"
        own = {record.example.id: record for record in theirs.records}
        if asked.keys() != own.keys():
            raise ValueError(
                f"{start} answered different items, {len(asked.keys() & own.keys())} of "
                f"{len(asked.keys() | own.keys())} are shared: a limit or a version of the data that differs? "
                f"({ours.origin}, {theirs.origin})"
            )

        differing = [name for name, record in own.items() if record.prompt != asked[name].prompt]
        if differing:
            raise ValueError(
                f"{start} were asked {len(differing)} items in different words, {differing[0]} for one: other "
                f"examples before the question, or another template? ({ours.origin}, {theirs.origin})"
            )


def _access_of(
    files: Mapping[str, Mapping[str, Sampled]], stated: Sequence[str]
) -> dict[tuple[str, str], tuple[str, ...]]:
    """What each label's method was shown, by label and task: as stated, else as the file says, else unknown."""
    labels = {label for of_task in files.values() for label in of_task}
    given = {label: access for label, _, access in (item.partition("=") for item in stated)}
    if unknown := given.keys() - labels:
        raise ValueError(f"--access names {min(unknown)}, which is no label here: {', '.join(sorted(labels))}")

    access: dict[tuple[str, str], tuple[str, ...]] = {}
    for task, of_task in files.items():
        for label, sampled in of_task.items():
            if label in given:
                access[label, task] = stated_access(given[label])
            elif sampled.access is None and label == _BASELINE:
                access[label, task] = ()
            else:
                access[label, task] = stated_access(None) if sampled.access is None else sampled.access
    return access


def _metrics(of_task: Mapping[str, Sampled], lowered: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics that all labels have; what is 0 or 1 everywhere is a share, the rest are means without bounds."""
    first = next(iter(of_task.values()))
    shared = [name for name in first.directions if all(name in sampled.values for sampled in of_task.values())]
    if not shared:
        raise ValueError(f"task {first.task}: {', '.join(of_task)} have no metric in common")

    metrics = []
    for name in shared:
        values = {value for sampled in of_task.values() for value in sampled.values[name].values()} - {None}
        higher = first.directions[name] and name not in lowered
        if values <= {0.0, 1.0}:
            metrics.append(Metric(name, higher, 0.0, 1.0, "proportion"))
        else:
            metrics.append(Metric(name, higher, -math.inf, math.inf))
    return tuple(metrics)


def _left_out(files: Mapping[str, Mapping[str, Sampled]]) -> set[tuple[str, str]]:
    reasons = [sampled.left_out.items() for of_task in files.values() for sampled in of_task.values()]
    return {pair for pairs in reasons for pair in pairs}


def _written(
    out: Path,
    label: str,
    sampled: Sampled,
    metrics: tuple[Metric, ...],
    access: Sequence[str],
    model: str | None,
    command: Sequence[str],
) -> Path:
    """Write a finished run; the same files give the same run."""
    record, made_from, evaluator = _run(label, sampled, metrics, access, model, command)
    folder = folder_for(out, record.labels, record.key)
    store = GenerationStore(out / "generations" / key_of(made_from))
    evaluation = evaluate(sampled.records, {sampled.tool: evaluator}, lambda _: Tools(), seed=0)

    with locked(folder, _LOCK_WAIT_SECONDS), locked(store.folder, _LOCK_WAIT_SECONDS):
        earlier_record(folder, record.key)  # refuses a folder that holds another run
        if not store.files:
            store.begin(made_from)
            store.add_selected([Selected(item, 0) for item in sampled.records])
            store.seal()
        folder.mkdir(parents=True, exist_ok=True)
        with replaced(folder / SCORES_FILE) as draft:
            write_lines(draft, (score_row(score) for score in evaluation.scores))

        changes = {
            "name": folder.name,
            "generations": os.path.relpath(store.folder, folder),
            "files": {**store.files, SCORES_FILE: mark_of(folder / SCORES_FILE)},
            "estimates": dict(evaluation.estimates),
        }
        record.model_copy(update=changes).write(folder)
    return folder


def _run(
    label: str,
    sampled: Sampled,
    metrics: tuple[Metric, ...],
    access: Sequence[str],
    model: str | None,
    command: Sequence[str],
) -> tuple[RunRecord, dict[str, object], Reported]:
    """The run without its place on the disk, what its generations are made from, and what scores them."""
    labels = Labels(
        method=label, control="none", task=sampled.task, model=model or sampled.model, seed="0", protocol="standard"
    )
    texts = [[record.example.id, record.prompt, record.generation.text] for record in sampled.records]
    made_from = {IMPORTED: {"texts": key_of(texts)}, "labels": labels.model_dump(), "seed": 0}
    evaluator = Reported(declared=metrics, values=sampled.values)
    scored_by = {"evaluator": evaluator, "settings": dict(sampled.settings)}
    keys = Keys.of(made_from, scored_by, ("all", "selected"))

    record = RunRecord(
        key=keys.run,
        entry=keys.entry,
        name="",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status="done",
        config={**imported_config(labels), "evaluator": {sampled.tool: dict(sampled.settings)}},
        labels=labels,
        access=(IMPORTED, *access),
        oracle="unknown" in access or Access.GOLD in access,
        evaluators={sampled.tool: EvaluatorNote.of(evaluator)},
        num_examples=len(sampled.records),
        provenance=Provenance(
            commit=commit(),
            versions=versions(),
            model_identity=model or sampled.identity,
            task_fingerprint=_fingerprint(sampled),
            command=shlex.join(command),
            imported_from=f"{Path(sampled.origin).name} {key_of([texts, sampled.values])}",
        ),
    )
    return record, made_from, evaluator


def _fingerprint(sampled: Sampled) -> str:
    """Of items, prompts and golds, in any order."""
    asked = sorted([record.example.id, record.prompt, record.example.answer] for record in sampled.records)
    return hashlib.sha256(repr(asked).encode()).hexdigest()
