"""From a job to its generations on disk: fit, search, generate, append. Continues where an earlier run stopped."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness import receipt
from harness.build import Job
from harness.data import Example
from harness.progress import progress
from harness.records.identity import ENGINE_VERSION, key_of, plain
from harness.records.provenance import peak_memory_bytes
from harness.records.store import GenerationStore, Lines, locked
from harness.scorer import open_subject, scorer_identity
from harness.scoring import Record, Tools
from harness.search.search import Prepared, Selection, Setting, generation_fields, generation_of
from harness.subject.load import device_of, load_model, locate
from harness.subject.local import LocalSubject
from harness.workbench import Request, Workbench
from harness.workspace import Workspace

_subjects: dict[str, LocalSubject] = {}


def subject_for(job: Job) -> LocalSubject:
    """The job's model; the last one used stays loaded for the next job."""
    key = key_of(job.model)
    if key not in _subjects:
        _subjects.clear()
        _subjects[key] = open_subject(load_model(job.model))
    opened = _subjects[key]
    return LocalSubject(opened.network, opened.tokenizer, opened.template, opened.name, job.engine)


def identity(job: Job) -> dict[str, Any]:
    """Everything that the generations depend on."""
    model = job.model
    used = job.method if job.control.steers else None
    needs = job.objective.needs if job.search.needs_objective else frozenset()
    splits = ["test", *(["train"] if used and used.requires else []), *(["dev"] if job.search.uses_dev else [])]
    return {
        "engine": ENGINE_VERSION,
        "model": {
            "identity": locate(model)[1],
            "label": model.label,
            "dtype": model.dtype,
            "device": "cpu" if not model_on_accelerator(job) else "accelerator",
            "quantization": model.quantization,
            "chat_template": model.chat_template,
            "prompt_template": model.prompt_template,
        },
        "task": {
            "name": job.task.name,
            "fingerprint": job.task.fingerprint(splits),  # pyright: ignore[reportArgumentType]
            "max_new_tokens": job.task.max_new_tokens,
        },
        "method": plain(job.method) if job.control.steers else {"instruction": job.method.instruction},
        "search": plain(job.search),
        "objective": plain(job.objective) if job.search.needs_objective else None,
        "scorer": scorer_identity(job.scorer, model) if "scorer" in needs else None,
        "judge": job.judge.identity if "judge" in needs else None,
        "control": plain(job.control),
        "seed": job.seed,
        "prune_loops": job.prune_loops,
    }


def model_on_accelerator(job: Job) -> bool:
    """Whether the model will live on something other than the CPU: results differ slightly between the two."""
    return device_of(job.model).type != "cpu"


@dataclass(frozen=True)
class Generated:
    """Generations on disk."""

    folder: Path
    key: str
    records: tuple[Record, ...]
    rows: tuple[dict[str, Any], ...]
    receipt: dict[str, Any] | None
    cost: dict[str, float]


def generate(job: Job) -> Generated:
    """Make, or finish, or just read the job's generations.

    Raises:
        NotSteeredError: the method should have changed hidden states and did not.
    """
    made_from = identity(job)
    key = key_of(made_from)
    folder = job.out / "generations" / key
    with locked(folder, job.lock_wait):
        store = GenerationStore(folder, made_from)
        examples = job.task.examples("test")
        if not _is_complete(job, store, examples):
            _produce(job, store, examples)
        return _read(folder, key, store, examples)


def _is_complete(job: Job, store: GenerationStore, examples: Sequence[Example]) -> bool:
    done = {row["example_id"] for row in store.generations}
    return done >= {example.id for example in examples} and (not job.steers or store.receipt is not None)


def _read(folder: Path, key: str, store: GenerationStore, examples: Sequence[Example]) -> Generated:
    by_id = {row["example_id"]: row for row in store.generations}
    rows = [by_id[example.id] for example in examples]
    records = [Record(e, generation_of(row), row["prompt"]) for e, row in zip(examples, rows, strict=True)]
    return Generated(folder, key, tuple(records), tuple(rows), store.receipt, store.cost())


def _produce(job: Job, store: GenerationStore, examples: Sequence[Example]) -> None:
    subject = subject_for(job)
    bench = Workbench(subject, job.task, job.method, job.control, job.seed, job.prune_loops)
    bench.feed(examples)
    dev = job.task.examples("dev") if job.search.uses_dev else []
    if dev and job.steers:
        bench.feed(dev)
    _fit(bench, store)
    needs_scorer = job.search.needs_objective and "scorer" in job.objective.needs
    tools = Tools(scorer=job.scorer.open(subject) if needs_scorer else None, judge=job.judge)
    done = {row["example_id"] for row in store.generations}
    todo = [example for example in examples if example.id not in done]
    title = " ".join(filter(None, (job.labels["method"], _unless_none(job.labels["control"]), job.labels["search"])))
    with progress(title, job.search.num_trials_of(len(todo))) as advance:
        setting = Setting(job.objective, tools, job.seed, store, advance)
        with _counted(store, subject):
            prepared = job.search.prepare(bench, dev, setting)
        _generate_all(job, bench, todo, prepared, setting)
    if job.steers and store.receipt is None:
        _prove(job, bench, store, examples)


def _unless_none(label: str) -> str:
    return "" if label == "none" else label


def _fit(bench: Workbench, store: GenerationStore) -> None:
    saved = store.artifact
    if saved is not None:
        bench.adopt(saved)
        return
    workspace = Workspace(store.folder / "training", progress=partial(progress, unit="steps"))
    with _counted(store, bench.subject, workspace):
        fitted = bench.fit(workspace)
    if fitted:
        store.save_artifact(fitted)
    # Only now: a kill before this line finds the checkpoints, one behind it the artifact.
    shutil.rmtree(store.folder / "training", ignore_errors=True)


def _generate_all(job: Job, bench: Workbench, todo: Sequence[Example], prepared: Prepared, setting: Setting) -> None:
    size = job.search.chunk_size
    for start in range(0, len(todo), size):
        chunk = todo[start : start + size]
        with _counted(setting.store, bench.subject):
            selections = job.search.select(bench, chunk, prepared, setting)
        setting.store.generations.append(
            _row(bench, example, selection) for example, selection in zip(chunk, selections, strict=True)
        )
        bench.forget_conditions()


def _row(bench: Workbench, example: Example, selection: Selection) -> dict[str, Any]:
    return {
        "example_id": example.id,
        "question": example.question,
        "answer": example.answer,
        "aliases": list(example.aliases),
        "distractors": list(example.distractors),
        "choices": list(example.choices),
        "target": example.target,
        "group": example.group,
        "concept": example.concept,
        "cluster": example.cluster,
        "metadata": dict(example.metadata),
        "prompt": bench.prompt(example),
        "trial": selection.trial,
        "objective": selection.objective,
        "parameters": selection.generation.parameters,
        **generation_fields(selection.generation),
    }


def stored_records(store: GenerationStore) -> list[Record]:
    """All records of a folder, made from what stands there alone."""
    return [Record(_example(row), generation_of(row), row["prompt"]) for row in store.generations]


def stored_trials(folder: Path, records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of all trials of these examples that a search per prompt left in a folder, by example id."""
    known = {record.example.id: record for record in records}
    found: dict[str, list[Record]] = {}
    for row in Lines(folder / "trials.jsonl"):
        if row["trial"] >= 0 and row["example_id"] in known:
            record = dataclasses.replace(known[row["example_id"]], generation=generation_of(row))
            found.setdefault(row["example_id"], []).append(record)
    return found


def _example(row: dict[str, Any]) -> Example:
    lists = {name: tuple(row.get(name, ())) for name in ("aliases", "distractors", "choices")}
    return Example(
        row["example_id"],
        row["question"],
        row["answer"],
        **lists,
        target=row.get("target"),
        group=row["group"],
        metadata=row["metadata"],
        concept=row.get("concept", ""),
        cluster=row.get("cluster", ""),
    )


def _prove(job: Job, bench: Workbench, store: GenerationStore, examples: Sequence[Example]) -> None:
    by_id = {example.id: example for example in examples}
    steered = [row for row in store.generations if row["parameters"]]
    incumbents_only = not steered
    if incumbents_only:  # the un-steered text won everywhere: measure what was tried instead
        steered = [row for row in store.trials if row["trial"] == 0 and row["example_id"] in by_id]
    requests = [Request(by_id[row["example_id"]], row["parameters"], row["trial"]) for row in steered]
    measured = receipt.measure(bench, requests, [tuple(row["token_ids"]) for row in steered])
    receipt.demand_effect(measured, job.labels["method"])
    store.save_receipt(measured | {"of_unselected_trials": incumbents_only})


@contextmanager
def _counted(store: GenerationStore, subject: LocalSubject, fit: Workspace | None = None) -> Iterator[None]:
    tokens, start = subject.tally.forward_tokens, time.perf_counter()
    yield
    line: dict[str, Any] = {
        "forward_tokens": subject.tally.forward_tokens - tokens,
        "seconds": time.perf_counter() - start,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    if fit is not None:
        line["kind"] = "fit"
        for name in ("examples", "tokens", "seconds"):
            line[f"training_{name}"] = sum(getattr(cost, name) for cost in fit.costs)
    store.costs.append([line])
