"""From a job to its generations on disk: fit, search, generate, append. Continues where an earlier run stopped."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from harness import receipt
from harness.data import Example
from harness.first_pass import check_first_pass
from harness.job import Job
from harness.lengths import check_lengths
from harness.progress import phase
from harness.records.locks import locked
from harness.records.meter import Meter
from harness.records.rows import UNSTEERED, Selected
from harness.records.run import LATENTS_FILE, Cost, Receipt
from harness.records.store import GenerationStore, Sizes
from harness.scoring import Tools
from harness.search.search import Prepared, Setting
from harness.subject.load import ResolvedModel, load_model
from harness.subject.local import LocalSubject, Template
from harness.subject.scorers import open_subject
from harness.subject.sizes import Shapes, rows_that_fit
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
    opened.forget_prompts()
    template = Template(job.model.config.prompt_template, job.model.config.chat_template)
    return LocalSubject(opened.network, opened.tokenizer, template, opened.name, job.engine)


def keep_loaded(model: ResolvedModel, subject: LocalSubject) -> None:
    """Use a model that is loaded already for the jobs that ask for it."""
    _subjects.clear()
    _subjects[_weights_key(model)] = subject


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
        selected: one for each test item, or for those that were asked for, in the task's order; then what was read in
            each concept's texts, if asked for.
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
    source = None if job.chosen_by is None else generate(job.chosen_by)
    store = GenerationStore(generations_folder(job))
    items = job.task.examples("test") if job.generates else []
    tests = [example for example in items if counted is None or example.id in counted]

    with locked(store.folder, job.lock_wait, on_wait=forget_subjects):
        store.begin(job.keys.made_from)
        if not store.files or (job.reads_latents and LATENTS_FILE not in store.files):
            _produce(job, store, tests, source)
            store.seal()

        by_id = {item.record.example.id: item for item in store.selected()}
        selected = [by_id[example.id] for example in tests] if job.generates else []
        latents = store.latents() if job.reads_latents else []
        return Generated(store, (*selected, *latents), store.receipt, store.cost(), store.prepared)


def bench_for(job: Job, subject: LocalSubject) -> Workbench:
    """Where the job's rows are run."""
    return Workbench(subject, job.task, job.method, job.control, job.seed, job.prune_loops)


def dev_items(job: Job) -> list[Example]:
    """The items that the job's own search runs besides those of the test."""
    return job.task.examples("dev") if job.search.uses_dev and job.chosen_by is None else []


def _produce(job: Job, store: GenerationStore, tests: Sequence[Example], source: Generated | None) -> None:
    """Everything that is still missing, each piece written as soon as it is done.

    Args:
        job: what to do.
        store: where to write.
        tests: items to generate for.
        source: whose fitted tensors and parameters to take over; None to fit and search.
    """
    subject = subject_for(job)
    bench = bench_for(job, subject)
    if job.generates:
        check_lengths(bench, [*tests, *dev_items(job)])

    meter = Meter(lambda: subject.tally.forward_tokens)
    if source is None:
        _fit(bench, store, meter)
    else:
        bench.adopt(source.store.artifact or {})

    if job.reads_latents and not store.latents():
        with phase("latents"):
            records = bench.read_latents(job.task.latent_examples())
            store.save_latents([Selected(record, UNSTEERED) for record in records])
        store.add_work(meter.lap("latents"))

    if job.generates:
        _search_and_generate(job, bench, store, meter, tests, source)


def _search_and_generate(
    job: Job,
    bench: Workbench,
    store: GenerationStore,
    meter: Meter,
    tests: Sequence[Example],
    source: Generated | None,
) -> None:
    """Choose parameters, or take over those of ``source``, and generate with them."""
    dev = dev_items(job)
    bench.feed(tests)
    if dev and job.steers:
        bench.feed(dev)
    sizes = _sizes(job, bench, store, meter, tests)
    engine = dataclasses.replace(job.engine, max_rows=sizes.max_rows, token_budget=sizes.token_budget)
    bench.subject = dataclasses.replace(bench.subject, engine=engine)

    needs_scorer = source is None and job.search.needs_objective and "scorer" in job.objective.needs
    scorer = job.scoring.scorer.open(job.scoring.scoring_model, bench.subject) if needs_scorer else None
    tools = Tools(scorer=scorer, judge=job.scoring.judge)
    chunks = _open_chunks(tests, sizes.chunk, store)

    setting = Setting(job.objective, tools, job.seed, store, meter, lambda _count: None)
    with phase("search on dev items", job.search.num_dev_trials_of(len(dev)) or None) as advance:
        if source is None:
            prepared = job.search.prepare(bench, dev, dataclasses.replace(setting, advance=advance))
        else:
            prepared = _for_all(source.parameters)
        store.save_prepared(prepared)
    with phase("test items", job.search.num_trials_of(sum(map(len, chunks)))) as advance:
        _generate_all(job, bench, chunks, prepared, dataclasses.replace(setting, advance=advance))
    if job.steers and store.receipt is None:
        with phase("proof of steering"):
            _prove(job, bench, store, meter)


def _sizes(job: Job, bench: Workbench, store: GenerationStore, meter: Meter, tests: Sequence[Example]) -> Sizes:
    """How large chunks and batches are: decided at the first start by device and memory, and recorded.

    Whoever continues gets the same ones, however much memory is free by then, unless the limits on the command line are
    others than before.
    """
    asked = {"asked_rows": job.engine.max_rows, "asked_budget": job.engine.token_budget}
    known = store.sizes
    if known is not None and {name: getattr(known, name) for name in asked} == asked:
        return known

    longest = max(len(bench.subject.encode(bench.prompt(example))) for example in tests)
    defaults = bench.method.defaults(bench.subject.layout)
    if job.steers:
        check_first_pass(bench, [Request(example, defaults) for example in tests])
        store.add_work(meter.lap("first pass"))
    one_row = bench.intervention([Request(tests[0], defaults)])
    bench.forget_conditions()  # the row was only asked what it keeps per token
    network, tokens = bench.subject.network, longest + bench.task.max_new_tokens
    tokens = Shapes.of(network.device, 1, tokens, job.engine.compile).capacity
    rows = rows_that_fit(network, job.engine, tokens, one_row.bytes_per_token)

    # Samples of one item stay in one chunk.
    chunk = -(-job.search.chunk_size(rows) // job.task.num_samples) * job.task.num_samples
    sizes = Sizes(chunk, rows, rows * tokens, **asked)
    store.add_work(meter.lap("sizes"))
    store.save_sizes(sizes)
    return sizes


def _open_chunks(tests: Sequence[Example], size: int, store: GenerationStore) -> list[Sequence[Example]]:
    """The chunks that are not written yet; what a kill left of one is dropped, for its rows share batches."""
    chunks = [tests[start : start + size] for start in range(0, len(tests), size)]
    done = {item.record.example.id for item in store.selected()}
    missing = [chunk for chunk in chunks if not all(example.id in done for example in chunk)]
    store.drop_selected({example.id for chunk in missing for example in chunk} & done)
    return missing


def _for_all(parameters: Prepared) -> Prepared:
    """The parameters that another job chose, if they hold for other prompts than its own."""
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise ValueError("side_effects: parameters were chosen for each group of examples; there are none for others")
    return parameters


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


def _generate_all(
    job: Job, bench: Workbench, chunks: Sequence[Sequence[Example]], prepared: Prepared, setting: Setting
) -> None:
    """Chunk by chunk, each as if it were the first: a restart that begins with it gets the same numbers."""
    for chunk in chunks:
        bench.subject.forget_prompts()
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
    bench.subject.forget_prompts()
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
