"""One job from start to finish: generations, scores, run.json, W&B."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.build import Job, first_line
from harness.data import Access
from harness.evaluate import Evaluation, ScoredTrials, describe, evaluate
from harness.generate import Generated, generate, identity, stored_trials, subject_for
from harness.records.identity import key_of, plain
from harness.records.provenance import provenance
from harness.records.store import Lines, read_json, write_json
from harness.scorer import scorer_identity
from harness.scoring import Evaluator, Judge, Record, Scorer, Tools
from harness.subject.load import device_of


def run_key(job: Job, made_from: Mapping[str, Any]) -> str:
    """Generations and evaluation together."""
    scorer = _scorer_of(job)
    return evaluation_key(made_from, job.evaluators, job.judge, scorer, subset_decision(job), job.scored_trials)


def _scorer_of(job: Job) -> list[Any] | None:
    needed = any("scorer" in evaluator.needs for evaluator in job.evaluators.values())
    return scorer_identity(job.scorer, job.model) if needed else None


def subset_decision(job: Job) -> list[Any]:
    """The subset and, if it is one, everything that decides which examples are in it."""
    if job.task.subset == "all":
        return ["all"]
    return [job.task.subset, key_of([identity(job.unsteered()), job.judge.identity, plain(_grader(job))])]


def _grader(job: Job) -> dict[str, Evaluator]:
    """The evaluator that says which answers are incorrect, by its name.

    Raises:
        ValueError: none does.
    """
    for name, evaluator in job.evaluators.items():
        if any(metric.name == "incorrect" for metric in evaluator.metrics):
            return {name: evaluator}
    raise ValueError("task.subset=baseline_incorrect is decided by evaluator simpleqa_rubric; add it")


def evaluation_key(
    made_from: Mapping[str, Any],
    evaluators: Mapping[str, Evaluator],
    judge: Judge,
    scorer: list[Any] | None,
    subset: Sequence[Any],
    scored_trials: ScoredTrials,
) -> str:
    """The same for parts; a judge that no evaluator calls on does not count, a scorer is only given if one does."""
    needs = {need for evaluator in evaluators.values() for need in evaluator.needs}
    identity_of_judge = judge.identity if "judge" in needs else None
    return key_of([made_from, plain(dict(evaluators)), identity_of_judge, scorer, list(subset), scored_trials])


def run_folder(job: Job, key: str) -> Path:
    """Where the run is written: a readable name and its key, the same for the same settings."""
    return job.out / (job.name or usual_name(job.labels, key))


def usual_name(labels: Mapping[str, str], key: str) -> str:
    """A run's name if it was given none."""
    control = "" if labels["control"] == "none" else labels["control"]
    parts = [
        labels["task"],
        labels["model"],
        labels["method"],
        labels["search"],
        control,
        f"s{labels['seed']}",
        key[:8],
    ]
    return "-".join(filter(None, parts))


def run(job: Job, group: str | None = None) -> tuple[Path, dict[str, Any]]:
    """Carry out a job, or read the finished run of an earlier, equal one.

    Args:
        job: what to do.
        group: name of the sweep, for tracking.

    Returns:
        The run's folder and the content of its run.json.
    """
    made_from = identity(job)
    key = run_key(job, made_from)
    folder = run_folder(job, key)
    earlier = read_json(folder / "run.json")
    if earlier is not None and earlier.get("key") != key:
        raise ValueError(f"name: {folder} holds another run (key {earlier.get('key')}); choose another name")
    if earlier is not None and earlier["status"] == "done":
        job.tracking.publish(folder, group)
        return folder, earlier
    info = _describe(job, key, folder)
    write_json(folder / "run.json", info | {"status": "running"})
    try:
        finished = _carry_out(job, folder, info)
    except Exception as error:
        write_json(folder / "run.json", info | {"status": "failed", "error": first_line(error)})
        job.tracking.publish(folder, group)
        raise
    write_json(folder / "run.json", finished)
    job.tracking.publish(folder, group)
    return folder, finished


def begun_folder(job: Job) -> Path | None:
    """The folder of a job that failed on the way, if it came far enough to have one."""
    try:
        folder = run_folder(job, run_key(job, identity(job)))
    except Exception:  # what made the job fail may be what its key is made from
        return None
    return folder if (folder / "run.json").exists() else None


def _describe(job: Job, key: str, folder: Path) -> dict[str, Any]:
    return {
        "key": key,
        "name": folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": job.config,
        "labels": dict(job.labels),
        "access": sorted(job.access),
        "oracle": Access.GOLD in job.access,
        "optimised_metrics": _optimised(job),
        "evaluators": describe(job.evaluators),
        "error": None,
        "provenance": provenance(
            device_of(job.model),
            dtype=job.model.dtype,
            model_identity=identity(job)["model"]["identity"],
            task_fingerprint=job.task.fingerprint(["test"]),
            seed=job.seed,
            command=job.command,
        ),
    }


def _optimised(job: Job) -> list[str]:
    if not job.search.needs_objective or Access.GOLD not in job.search.access:
        return []
    if job.scored_trials == "best":
        return optimised_by_scoring(job.evaluators)
    return sorted({term.metric for term in job.objective.terms})


def optimised_by_scoring(evaluators: Mapping[str, Evaluator]) -> list[str]:
    """The metrics whose value is that of the best-scored trial: all of them."""
    return sorted(metric.name for evaluator in evaluators.values() for metric in evaluator.metrics)


def _carry_out(job: Job, folder: Path, info: dict[str, Any]) -> dict[str, Any]:
    generated = generate(job)
    # From here on a failure is one of scoring alone, and run.json must say what can be scored again.
    info["generations"] = f"../generations/{generated.key}"
    info["receipt"] = generated.receipt
    chosen, others = select_subset(job, generated.records)
    if job.task.subset != "all":
        decision = {"decision": subset_decision(job), "kept": len(chosen), "of": len(generated.records)}
        info["subset"] = {"name": job.task.subset, "ids": [record.example.id for record in chosen]} | decision
    tools = tools_for(job)
    trials = stored_trials(generated.folder, generated.records) if job.scored_trials == "best" else None
    info["scored_trials"] = "best" if trials else "selected"
    evaluation = evaluate(chosen, job.evaluators, tools, job.seed, trials)
    result = info | results(job, folder, generated, evaluation)
    if others:
        rest = evaluate(generated.records, job.evaluators, tools, job.seed, trials)
        result["estimates_unselected_set"] = {name: dataclasses.asdict(e) for name, e in rest.estimates.items()}
    return result


def select_subset(job: Job, records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The records that count, and the others: those whose un-steered answer was not graded incorrect."""
    if job.task.subset == "all":
        return list(records), []
    wrong = _baseline_incorrect(job)
    chosen = [record for record in records if record.example.id in wrong]
    if not chosen:
        raise ValueError("task.subset=baseline_incorrect: the un-steered model got no item wrong")
    return chosen, [record for record in records if record.example.id not in wrong]


def _baseline_incorrect(job: Job) -> set[str]:
    baseline = job.unsteered()
    records = generate(baseline).records
    scores = evaluate(records, _grader(job), tools_for(baseline), job.seed).scores
    return {score.example_id for score in scores if score.metric == "incorrect" and score.value == 1}


def tools_for(job: Job) -> Callable[[Evaluator], Tools]:
    """Opens what each evaluator needs and no more, next to the loaded subject."""
    return lazy_tools(lambda: job.scorer.open(subject_for(job)), job.judge)


def lazy_tools(open_scorer: Callable[[], Scorer], judge: Judge) -> Callable[[Evaluator], Tools]:
    """Opens the scorer when an evaluator first needs it, and once."""
    opened: list[Scorer] = []

    def tools(evaluator: Evaluator) -> Tools:
        if "scorer" in evaluator.needs and not opened:
            opened.append(open_scorer())
        return Tools(
            scorer=opened[0] if "scorer" in evaluator.needs else None,
            judge=judge if "judge" in evaluator.needs else None,
        )

    return tools


def results(job: Job, folder: Path, generated: Generated, evaluation: Evaluation) -> dict[str, Any]:
    """Write the scores and return what run.json says of them."""
    return {
        **scored(folder, evaluation, job.evaluators, job.judge, generated.cost),
        "near_ties": sum(record.generation.near_ties for record in generated.records),
        "receipt": generated.receipt,
    }


def scored(
    folder: Path, evaluation: Evaluation, evaluators: Mapping[str, Evaluator], judge: Judge, cost: Mapping[str, float]
) -> dict[str, Any]:
    """Write the scores and return the part of run.json that comes from them."""
    (folder / "scores.jsonl").unlink(missing_ok=True)
    Lines(folder / "scores.jsonl").append(dataclasses.asdict(score) for score in evaluation.scores)
    judged = any("judge" in evaluator.needs for evaluator in evaluators.values())
    usage = getattr(judge, "usage", None) if judged else None
    calls = {"judge_calls": getattr(usage, "calls", 0), "judge_cost": 0.0 if usage is None else usage.cost}
    return {
        "status": "failed" if evaluation.problems else "done",
        "error": "; ".join(evaluation.problems) or None,
        "estimates": {name: dataclasses.asdict(found) for name, found in evaluation.estimates.items()},
        "derived": dict(evaluation.derived),
        "num_examples": len({score.example_id for score in evaluation.scores}),
        "cost": {**cost, **calls},
        "judge": judge.identity if judged else None,
        "judge_calibration": getattr(judge, "calibration", None) if judged else None,
    }
