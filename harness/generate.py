"""From a job to its generations on disk: fit, search, generate, append. Continues where an earlier run stopped."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from harness import receipt
from harness.build import Job
from harness.data import Example
from harness.progress import phase
from harness.records.locks import locked
from harness.records.meter import Meter
from harness.records.rows import Selected
from harness.records.run import Cost, Receipt
from harness.records.store import GenerationStore
from harness.scoring import Tools
from harness.search.search import Prepared, Setting
from harness.subject.load import ResolvedModel, load_model
from harness.subject.local import LocalSubject, Template
from harness.subject.scorers import open_subject
from harness.workbench import Request, Workbench
from harness.workspace import Workspace

_subjects: dict[str, LocalSubject] = {}


def subject_for(job: Job) -> LocalSubject:
    """The job's model; the last one used stays loaded for the next job."""
    key = _weights_key(job.model)
    if key not in _subjects:
        _subjects.clear()
        with phase(f"load {job.model.config.label}"):
            _subjects[key] = open_subject(load_model(job.model))
    opened = _subjects[key]
    template = Template(job.model.config.prompt_template, job.model.config.chat_template)
    return LocalSubject(opened.network, opened.tokenizer, template, opened.name, job.engine)


def forget_subjects() -> None:
    """Give the memory of loaded models back."""
    _subjects.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _weights_key(model: ResolvedModel) -> str:
    """What must be loaded anew for: other weights, another dtype or device, but not another prompt."""
    config = model.config
    return repr((model.identity, config.dtype, str(model.device), config.quantization, config.blocks_path))


@dataclass(frozen=True)
class Generated:
    """Generations on disk.

    Args:
        store: where they lie.
        selected: one for each test item, or for those that were asked for, in the task's order.
        receipt: proof of steering; None for what does not steer.
        cost: work of all sessions so far.
        parameters: what the search chose for all test items together, empty if it chose for each.
    """

    store: GenerationStore
    selected: tuple[Selected, ...]
    receipt: Receipt | None
    cost: Cost
    parameters: Prepared


def generations_folder(job: Job) -> Path:
    """Where the job's generations lie, the same for every job that would make the same ones."""
    return job.out / "generations" / job.keys.generations


def generate(job: Job, counted: Collection[str] | None = None) -> Generated:
    """Make, or finish, or just read the job's generations.

    Args:
        job: what to do.
        counted: ids of the test items to generate for, where a subset decides what counts; None: all.

    Raises:
        NotSteeredError: the method should have changed hidden states and did not.
    """
    store = GenerationStore(generations_folder(job))
    tests = [example for example in job.task.examples("test") if counted is None or example.id in counted]
    with locked(store.folder, job.lock_wait, on_wait=forget_subjects):
        store.begin(job.keys.made_from)
        if not store.files:
            _produce(job, store, tests)
            store.seal()
        by_id = {item.record.example.id: item for item in store.selected()}
        selected = tuple(by_id[example.id] for example in tests)
        return Generated(store, selected, store.receipt, store.cost(), store.prepared)


def _produce(job: Job, store: GenerationStore, tests: Sequence[Example]) -> None:
    """Everything that is still missing, each piece written as soon as it is done."""
    dev = job.task.examples("dev") if job.search.uses_dev else []

    subject = subject_for(job)
    bench = Workbench(subject, job.task, job.method, job.control, job.seed, job.prune_loops)
    bench.feed(tests)
    if dev and job.steers:
        bench.feed(dev)
    meter = Meter(lambda: subject.tally.forward_tokens)
    _fit(bench, store, meter)

    needs_scorer = job.search.needs_objective and "scorer" in job.objective.needs
    scorer = job.scoring.scorer.open(job.scoring.scoring_model, subject) if needs_scorer else None
    tools = Tools(scorer=scorer, judge=job.scoring.judge)
    done = {item.record.example.id for item in store.selected()}
    todo = [example for example in tests if example.id not in done]

    setting = Setting(job.objective, tools, job.seed, store, meter, lambda _count: None)
    with phase("search on dev items", job.search.num_dev_trials_of(len(dev)) or None) as advance:
        prepared = job.search.prepare(bench, dev, dataclasses.replace(setting, advance=advance))
        store.save_prepared(prepared)
    with phase("test items", job.search.num_trials_of(len(todo))) as advance:
        _generate_all(job, bench, todo, prepared, dataclasses.replace(setting, advance=advance))
    if job.steers and store.receipt is None:
        with phase("proof of steering"):
            _prove(job, bench, store, meter)


def _fit(bench: Workbench, store: GenerationStore, meter: Meter) -> None:
    if (saved := store.artifact) is not None:
        bench.adopt(saved)
        return
    workspace = Workspace(store.folder / "training", progress=partial(phase, unit="steps"))
    with phase("fit"):
        fitted = bench.fit(workspace)
    trained_on = sum(cost.examples for cost in workspace.costs)
    trained_tokens = sum(cost.tokens for cost in workspace.costs)
    store.add_work(meter.lap("fit", trained_on or bench.fit_examples, trained_tokens))
    if fitted:
        store.save_artifact(fitted)
    # Only now: a kill before this line finds the checkpoints, one behind it the artifact.
    shutil.rmtree(store.folder / "training", ignore_errors=True)


def _generate_all(job: Job, bench: Workbench, todo: Sequence[Example], prepared: Prepared, setting: Setting) -> None:
    """Chunk by chunk. The chunks are the same after a restart, since each is written whole or not at all."""
    size = job.search.chunk_size
    for start in range(0, len(todo), size):
        chunk = todo[start : start + size]
        selections = job.search.select(bench, chunk, prepared, setting)
        selected = [
            Selected(bench.record(example, item.generation), item.trial, item.objective)
            for example, item in zip(chunk, selections, strict=True)
        ]
        setting.note(f"generate from {chunk[0].id}")
        setting.store.add_selected(selected)
        bench.forget_conditions()


def _prove(job: Job, bench: Workbench, store: GenerationStore, meter: Meter) -> None:
    """Measure what the selected parameters do to hidden states, or refuse the result."""
    steered = [
        (Request(item.record.example, item.record.generation.parameters, item.trial), item.record.generation.token_ids)
        for item in store.selected()
        if item.record.generation.parameters
    ]
    of_unselected = not steered
    if of_unselected:  # the un-steered text won everywhere: measure what was tried instead
        by_id = {item.record.example.id: item.record.example for item in store.selected()}
        steered = [
            (Request(by_id[trial.generation.example_id], trial.generation.parameters, 0), trial.generation.token_ids)
            for trial in store.trials()
            if trial.number == 0 and trial.generation.example_id in by_id
        ]
    proof = receipt.prove(bench, [row for row, _ in steered], [ids for _, ids in steered], job.labels["method"])
    store.add_work(meter.lap("receipt"))
    store.save_receipt(proof.model_copy(update={"of_unselected_trials": of_unselected}))
