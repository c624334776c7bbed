"""The pieces of a job that need its model: fit, latents, sizes, parameters, chunks of test items, proof, likelihoods.

Each reads what earlier ones left in the store, and writes to it. So it is the same to a piece whether it runs in the
process that holds the store or in a worker whose reading and writing goes there (see `harness.executors`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from functools import cached_property, partial
from typing import Any

import torch

from harness import receipt
from harness.data import Example
from harness.first_pass import check_first_pass
from harness.job import Job
from harness.progress import Advance, phase
from harness.records.meter import Meter
from harness.records.rows import UNSTEERED, Selected
from harness.records.store import GenerationStore, Sizes
from harness.scoring import Scorer, Tools
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
    ways = (config.dtype, str(model.device), config.quantization, config.tensor_parallel, config.offload)
    return repr((model.identity, *ways, config.blocks_path))


def bench_for(job: Job, subject: LocalSubject) -> Workbench:
    """Where the job's rows are run."""
    return Workbench(subject, job.task, job.method, job.control, job.seed, job.prune_loops)


def tests_of(job: Job, counted: Collection[str] | None) -> list[Example]:
    """The test items to generate for: all, or those with these ids; none where nothing is generated."""
    items = job.task.examples("test") if job.generates else []
    return [example for example in items if counted is None or example.id in counted]


def dev_items(job: Job) -> list[Example]:
    """The items that the job's own search runs besides those of the test; none where nothing is generated."""
    searches = job.generates and job.search.uses_dev and job.chosen_by is None
    return job.task.examples("dev") if searches else []


class Steps:
    """A job with its model loaded.

    Args:
        job: what to do.
        store: where to read and write.
        source: where the fitted tensors lie, if they are another job's.
        tests: items to generate for.
    """

    def __init__(self, job: Job, store: GenerationStore, source: GenerationStore | None, tests: list[Example]) -> None:
        self._job, self._store, self._tests = job, store, tests
        self._fitted_in = source or store
        self._bench = bench_for(job, subject_for(job))
        self._is_adopted = self._is_fed = self._is_sized = False

    def carry_out(self, name: str, arguments: Sequence[Any] = (), advance: Advance = lambda _count: None) -> Any:
        """Do one piece.

        Args:
            name: of the method below.
            arguments: its own.
            advance: is told of finished trials.
        """
        self._advance = advance
        # Anew for each piece: what a worker waits between two is no work.
        self._meter = Meter(lambda: self._bench.subject.tally.forward_tokens)
        return getattr(self, name)(*arguments)

    def fit(self) -> None:
        """Fit the method and write its tensors."""
        # A worker on another machine may not see the folder; it keeps no checkpoints then.
        folder = self._store.folder / "training" if self._store.folder.is_dir() else None
        workspace = Workspace(folder, progress=partial(phase, unit="steps"))
        fitted = self._bench.fit(workspace)
        self._is_adopted = True
        trained_on = sum(cost.examples for cost in workspace.costs)
        trained_tokens = sum(cost.tokens for cost in workspace.costs)
        self._store.add_work(self._meter.lap("fit", trained_on or self._bench.fit_examples, trained_tokens))
        if fitted:
            self._store.save_artifact(fitted)

    def read_latents(self) -> None:
        """Write what the method reads in the texts of each concept."""
        self._adopt()
        records = self._bench.read_latents(self._job.task.latent_examples())
        self._store.save_latents([Selected(record, UNSTEERED) for record in records])
        self._store.add_work(self._meter.lap("latents"))

    def decide_sizes(self) -> None:
        """Decide by device and memory how large chunks and batches are, after a first pass that names mistakes."""
        self._feed()
        job, bench = self._job, self._bench
        longest = max(len(bench.subject.encode(bench.prompt(example))) for example in self._tests)
        defaults = bench.method.defaults(bench.subject.layout)
        if job.steers:
            check_first_pass(bench, [Request(example, defaults) for example in self._tests])
            self._store.add_work(self._meter.lap("first pass"))
        one_row = bench.intervention([Request(self._tests[0], defaults)])
        bench.forget_conditions()  # the row was only asked what it keeps per token

        network, tokens = bench.subject.network, longest + bench.task.max_new_tokens
        tokens = Shapes.of(network.device, 1, tokens, job.engine.compile).capacity
        rows = rows_that_fit(network, job.engine, tokens, one_row.bytes_per_token)
        asked = {"asked_rows": job.engine.max_rows, "asked_budget": job.engine.token_budget}
        # Samples of one item stay in one chunk.
        chunk = -(-job.search.chunk_size(rows) // job.task.num_samples) * job.task.num_samples
        sizes = Sizes(chunk, rows, rows * tokens, **asked)
        self._store.add_work(self._meter.lap("sizes"))
        self._store.save_sizes(sizes)

    def prepare(self) -> None:
        """Decide what the search decides once for all test items."""
        self._size()
        prepared = self._job.search.prepare(self._bench, dev_items(self._job), self._setting())
        self._store.save_prepared(prepared)

    def generate(self, ids: Sequence[str]) -> None:
        """Search and generate for one chunk as if it were the first: a restart that begins with it gets the same."""
        self._size()
        bench, setting = self._bench, self._setting()
        by_id = {example.id: example for example in self._tests}
        chunk = [by_id[name] for name in ids]

        bench.subject.forget_prompts()
        selections = self._job.search.select(bench, chunk, self._prepared, setting)
        selected = [
            Selected(bench.record(example, item.generation), item.trial, item.objective)
            for example, item in zip(chunk, selections, strict=True)
        ]
        setting.note(f"generate from {chunk[0].id}")
        self._store.add_selected(selected)
        bench.forget_conditions()

    def prove(self) -> None:
        """Measure what the selected parameters do to hidden states.

        Raises:
            NotSteeredError: the method should have changed hidden states and did not.
        """
        self._size()
        bench, store = self._bench, self._store
        bench.subject.forget_prompts()
        selected = store.selected()
        steered = [
            (Request(item.record.example, generation.parameters, item.trial), generation.token_ids)
            for item in selected
            if (generation := item.record.generation).parameters
        ]
        of_unselected = not steered
        if of_unselected:  # the un-steered text won everywhere: measure what was tried instead
            by_id = {item.record.example.id: item.record.example for item in selected}
            tried = [(trial.number, trial.generation) for trial in store.trials()]
            steered = [
                (Request(by_id[generation.example_id], generation.parameters, 0), generation.token_ids)
                for number, generation in tried
                if number == 0 and generation.example_id in by_id
            ]

        requests, completions = [row for row, _ in steered], [ids for _, ids in steered]
        proof = receipt.prove(bench, requests, completions, self._job.labels["method"])
        store.add_work(self._meter.lap("receipt"))
        store.save_receipt(proof.model_copy(update={"of_unselected_trials": of_unselected}))

    def loglikelihood(self, prompts: Sequence[str], completions: Sequence[str]) -> list[tuple[float, int]]:
        """How likely texts are to the job's scorer, see `harness.scoring.Scorer`."""
        return self._scorer.loglikelihood(prompts, completions)

    @cached_property
    def _scorer(self) -> Scorer:
        scoring = self._job.scoring
        return scoring.scorer.open(scoring.scoring_model, self._bench.subject)

    @cached_property
    def _prepared(self) -> Prepared:
        return self._store.prepared

    @cached_property
    def _tools(self) -> Tools:
        """What the objective's evaluators may call on."""
        job = self._job
        needs = job.objective.needs if job.chosen_by is None and job.search.needs_objective else frozenset()
        return Tools(scorer=self._scorer if "scorer" in needs else None, judge=job.scoring.judge)

    def _setting(self) -> Setting:
        job = self._job
        return Setting(job.objective, self._tools, job.seed, self._store, self._meter, self._advance)

    def _adopt(self) -> None:
        """Take over fitted tensors, unless they were made here."""
        if not self._is_adopted:
            self._bench.adopt(self._fitted_in.artifact or {})
        self._is_adopted = True

    def _feed(self) -> None:
        """Decide whose condition each example gets."""
        self._adopt()
        if not self._is_fed:
            self._bench.feed(self._tests)
            if self._job.steers and (dev := dev_items(self._job)):
                self._bench.feed(dev)
        self._is_fed = True

    def _size(self) -> None:
        """Make batches as large as it was decided."""
        self._feed()
        if not self._is_sized:
            sizes = self._store.sizes
            assert sizes is not None, "sizes are decided before anything is generated"
            engine = dataclasses.replace(self._job.engine, max_rows=sizes.max_rows, token_budget=sizes.token_budget)
            self._bench.subject = dataclasses.replace(self._bench.subject, engine=engine)
        self._is_sized = True
