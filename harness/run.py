"""One job from start to finish: generations, scores, run.json, W&B."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from harness.config import first_line
from harness.data import Access
from harness.evaluate import evaluate, score_run, tools_for
from harness.generate import generate, scorer_for
from harness.job import Job
from harness.records.locks import locked
from harness.records.provenance import provenance
from harness.records.run import RUN_FILE, EvaluatorNote, Labels, RunRecord, SearchNote, Subset

TRACEBACK = "traceback.txt"
"""Where a run's folder says at which line it failed."""


def runs_folder(job: Job) -> Path:
    """Where the runs of its sweep lie, or all runs that belong to none."""
    return job.out / job.sweep if job.sweep else job.out


def run_folder(job: Job) -> Path:
    """Where the run is written: a readable name and its key, the same for the same settings."""
    if job.name:
        return runs_folder(job) / job.name
    return folder_for(runs_folder(job), Labels(**job.labels), job.keys.run, job.overrides)


def folder_for(parent: Path, labels: Labels, key: str, overrides: Sequence[str] = ()) -> Path:
    """The folder of a run that was given no name: the one that its key has already, else one named after its labels.

    Args:
        parent: where runs lie.
        labels: of the run.
        key: of the run.
        overrides: what was set for it; the settings among them become part of the name.
    """
    if earlier := sorted(parent.glob(f"*-{key[:8]}/{RUN_FILE}")):
        return earlier[0].parent
    axes = [labels.shown(axis) for axis in ("task", "model", "method", "search", "control")]
    name = "-".join([*filter(None, [*axes, f"s{labels.seed}", _settings_in_name(overrides), key[:8]])])
    return parent / name.replace("/", "_")  # models of other tools are called OWNER/NAME


_SHOWN = ("method.", "search.", "control.", "objective", "protocol", "evaluator", "judge", "scorer")
"""Settings that tell runs of one method and task apart."""
_LONGEST = 60


def _settings_in_name(overrides: Sequence[str]) -> str:
    """What tells runs of one method apart, such as ``strength_0.3``; "" if nothing fits into a name."""
    settings = []
    for item in overrides:
        name, _, value = item.lstrip("+~").partition("=")
        short = re.sub(r"[^\w.+-]", "", value)
        if name.startswith(_SHOWN) and short and len(short) <= _LONGEST // 2:
            settings.append(f"{name.rsplit('.', 1)[-1]}_{short}")
    return "-".join(settings)[:_LONGEST].rstrip("-_.")


def run(job: Job) -> tuple[Path, RunRecord]:
    """Carry out a job, or read the finished run of an earlier, equal one.

    Args:
        job: what to do.

    Returns:
        The run's folder and its record.
    """
    folder = run_folder(job)
    with locked(folder, job.lock_wait):
        earlier = earlier_record(folder, job.keys.run)
        if earlier is not None and earlier.status == "done":
            earlier = _with_primary(earlier, job, folder)
            job.tracking.publish(folder, job.sweep)
            return folder, earlier

        _begun(job, folder).write(folder)
        with job.tracking.live(folder, job.sweep) as live:
            try:
                record = _carry_out(job, folder, RunRecord.read(folder))
            except Exception as error:  # noted in the run's folder whatever it is, and raised again
                (folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
                # What was generated before the failure can be scored: say where it lies.
                known = RunRecord.read(folder)
                known.model_copy(update={"status": "failed", "error": first_line(error)}).write(folder)
                job.tracking.publish(folder, job.sweep, live)
                raise
            record.write(folder)
            (folder / TRACEBACK).unlink(missing_ok=True)
            job.tracking.publish(folder, job.sweep, live)
        return folder, record


def earlier_record(folder: Path, key: str) -> RunRecord | None:
    """The record that lies in a folder already.

    Raises:
        ValueError: it is that of another run.
    """
    if not (folder / RUN_FILE).exists():
        return None
    earlier = RunRecord.read(folder)
    if earlier.key != key:
        raise ValueError(f"name: {folder} holds another run (key {earlier.key}); choose another name")
    return earlier


def _with_primary(record: RunRecord, job: Job, folder: Path) -> RunRecord:
    """A finished run under the job's primary metric, which decides no score and so is no part of its key."""
    task = record.config["task"]
    if task.get("primary") == job.task.primary:
        return record
    record = record.model_copy(update={"config": {**record.config, "task": {**task, "primary": job.task.primary}}})
    record.write(folder)
    return record


def begun_folder(job: Job) -> Path | None:
    """The folder of a job that failed on the way, if it came far enough to have one."""
    try:
        folder = run_folder(job)
    except Exception:  # what made the job fail may be what its key is made from
        return None
    return folder if (folder / RUN_FILE).exists() else None


def _begun(job: Job, folder: Path) -> RunRecord:
    """What is known before anything was done."""
    terms = job.objective.terms if job.search.needs_objective else ()
    optimises = tuple(sorted({term.metric for term in terms}))

    return RunRecord(
        key=job.keys.run,
        entry=job.keys.entry,
        name=folder.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status="running",
        sweep=job.sweep,
        overrides=job.overrides,
        config=dict(job.config),
        labels=Labels(**job.labels),
        access=tuple(sorted(job.access)),
        oracle=Access.GOLD in job.access,
        searched=SearchNote(access=tuple(sorted(job.search.access)), optimises=optimises) if terms else None,
        evaluators={name: EvaluatorNote.of(evaluator) for name, evaluator in job.scoring.evaluators.items()},
        provenance=provenance(
            job.model.device,
            dtype=job.model.config.dtype,
            model_identity=job.model.identity,
            num_layers=job.layout.num_layers,
            width=job.layout.width,
            method_version=job.method.version,
            task_fingerprint=job.task.fingerprint(["test"]) if job.generates else job.task.latents_fingerprint(),
            command=job.command,
        ),
    )


def _carry_out(job: Job, folder: Path, record: RunRecord) -> RunRecord:
    subset = _subset(job) if job.protocol.subset != "all" else None
    generated = generate(job, subset.ids if subset and job.generates_subset else None)
    record = record.model_copy(
        update={
            "subset": subset,
            "generations": os.path.relpath(generated.store.folder, folder),
            "files": generated.store.files_of({item.record.kind for item in generated.selected}),
            "receipt": generated.receipt,
            "parameters": dict(generated.parameters),
            "cost": generated.cost,
        }
    )
    record.write(folder)

    return score_run(
        record,
        folder,
        job.scoring,
        generated.store,
        generated.selected,
        lambda: scorer_for(job),
    )


def _subset(job: Job) -> Subset:
    """The examples whose un-steered answer is graded incorrect; the un-steered answers are made, or read, here."""
    baseline = job.unsteered()
    answers = [item.record for item in generate(baseline).selected]
    tools = tools_for(baseline.scoring, lambda: scorer_for(baseline))
    scores = evaluate(answers, job.scoring.grader, tools, job.seed).scores
    incorrect = {score.example_id for score in scores if score.metric == "incorrect" and score.value == 1}
    kept = tuple(answer.example.id for answer in answers if answer.example.id in incorrect)
    if not kept:
        raise ValueError("protocol.subset=baseline_incorrect: the un-steered model got no item wrong")
    return Subset(name=job.protocol.subset, decided_by=job.counted_by, ids=kept, of=len(answers))
