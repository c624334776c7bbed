"""From a job to its generations on disk: fit, search, generate, append. Continues where an earlier run stopped."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.data import Example
from harness.executors.crew import Assignment, dismiss_crews, hands_for
from harness.executors.hands import Hands
from harness.job import Job
from harness.lengths import check_lengths
from harness.progress import phase
from harness.records.locks import locked
from harness.records.rows import Selected
from harness.records.run import LATENTS_FILE, Cost, Receipt
from harness.records.store import GenerationStore
from harness.scoring import Scorer
from harness.search.search import Prepared
from harness.steps import dev_items, forget_subjects, subject_for, tests_of


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
        ValueError: a prompt does not fit into the model's context.
        NotSteeredError: the method should have changed hidden states and did not.
    """
    source = None if job.chosen_by is None else generate(job.chosen_by)
    store = GenerationStore(generations_folder(job))
    tests = tests_of(job, counted)
    with locked(store.folder, job.lock_wait, on_wait=release_models):
        store.begin(job.keys.made_from)
        if not store.files or (job.reads_latents and LATENTS_FILE not in store.files):
            check_lengths(job, [*tests, *dev_items(job)])  # before weights load
            hands = hands_for(Assignment(job, store, None if source is None else source.store, counted))
            _produce(job, hands, store, tests, source)
            store.seal()
        by_id = {item.record.example.id: item for item in store.selected()}
        selected = [by_id[example.id] for example in tests] if job.generates else []
        latents = store.latents() if job.reads_latents else []
        return Generated(store, (*selected, *latents), store.receipt, store.cost(), store.prepared)


def release_models() -> None:
    """Give back what loaded models hold, in this process and in workers."""
    forget_subjects()
    dismiss_crews()


def scorer_for(job: Job) -> Scorer:
    """The job's scorer, where the job's executor has the models."""
    if job.executor.is_here:
        return job.scoring.scorer.open(job.scoring.scoring_model, subject_for(job))
    hands = hands_for(Assignment(job, GenerationStore(generations_folder(job)), None, None))
    return _RemoteScorer(hands, job.scoring.scoring_model.identity)


@dataclass(frozen=True)
class _RemoteScorer:
    """A scorer whose model is in a worker. Implements `harness.types.Scorer`."""

    hands: Hands
    name: str

    def loglikelihood(self, prompts: Sequence[str], completions: Sequence[str]) -> list[tuple[float, int]]:
        """Summed log-probability in nats and number of tokens of each completion."""
        return self.hands.do("loglikelihood", list(prompts), list(completions))


def _produce(
    job: Job, hands: Hands, store: GenerationStore, tests: Sequence[Example], source: Generated | None
) -> None:
    """Everything that is still missing, each piece written as soon as it is done.

    Args:
        job: what to do.
        hands: who does what needs the model.
        store: where they write.
        tests: items to generate for.
        source: whose fitted tensors and parameters to take over; None to fit and search.
    """
    if source is None and store.artifact is None:
        with phase("fit"):
            hands.do("fit")
        # Only now: a kill before this line finds the checkpoints, one behind it the artifact.
        shutil.rmtree(store.folder / "training", ignore_errors=True)
    if job.reads_latents and not store.latents():
        with phase("latents"):
            hands.do("read_latents")
    if job.generates:
        _search_and_generate(job, hands, store, tests, source)


def _search_and_generate(
    job: Job, hands: Hands, store: GenerationStore, tests: Sequence[Example], source: Generated | None
) -> None:
    """Choose parameters, or take over those of ``source``, and generate with them."""
    chunks = _open_chunks(tests, _chunk_size(job, hands, store), store)
    with phase("search on dev items", job.search.num_dev_trials_of(len(dev_items(job))) or None) as advance:
        if source is None:
            hands.do("prepare", advance=advance)
        else:
            store.save_prepared(_for_all(source.parameters))
    with phase("test items", job.search.num_trials_of(sum(map(len, chunks)))) as advance:
        hands.do_all("generate", [[example.id for example in chunk] for chunk in chunks], advance)
    if job.steers and store.receipt is None:
        with phase("proof of steering"):
            hands.do("prove")


def _chunk_size(job: Job, hands: Hands, store: GenerationStore) -> int:
    """Test items of a chunk, decided at the first start together with the size of batches, and recorded.

    Whoever continues gets the same ones, however much memory is free by then, unless the limits on the command line are
    others than before.
    """
    asked = (job.engine.max_rows, job.engine.token_budget)
    sizes = store.sizes
    if sizes is None or (sizes.asked_rows, sizes.asked_budget) != asked:
        hands.do("decide_sizes")
        sizes = store.sizes
        assert sizes is not None
    return sizes.chunk


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
