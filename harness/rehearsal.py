"""What a job will cost, found by carrying it out on a few items: fit, search, controls, receipt and all."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import receipt
from harness.data import Example, Split
from harness.generate import Generated, generate
from harness.job import Job
from harness.tasks.task import Task

MOST_TESTS = 3
"""Test items of a rehearsal, and dev items of each group."""
_MOST_TRAINED = 24
"""Training items of each group."""


@dataclass(frozen=True)
class Forecast:
    """What a job takes.

    Args:
        rows: texts to generate, those of its search included.
        tokens: tokens fed through the model, as ``run.json`` will count them: fitting, search, its scoring by the
            subject itself, receipt.
        new_tokens: generated tokens among them.
    """

    rows: int
    tokens: float
    new_tokens: float


def rehearse(job: Job) -> Forecast:
    """Carry a job out on a few of its items, in a folder that is thrown away, and scale up what that took.

    Every piece is scaled by the items that it grows with: fitting by training items, the search on dev items by these,
    the receipt by its rows, everything else by test items. The search keeps its number of trials, for rounds and
    texts of unlike length cannot be told from a few of them.
    """
    items = {split: _items(job, split) for split in ("test", "dev", "train")}
    few: dict[Split, list[Example]] = {
        "test": _spread(items["test"], MOST_TESTS, job.task.num_samples),
        "dev": _of_each_group(items["dev"], MOST_TESTS),
        "train": _of_each_group(items["train"], _MOST_TRAINED),
    }
    with tempfile.TemporaryDirectory() as folder:
        smaller = dataclasses.replace(job, task=job.task.limited(few), out=Path(folder), sweep=None, name=None)
        generated = generate(smaller)
        pieces = generated.store.work()
        lengths = _lengths(generated)

    used = _dev_used(job, len(items["dev"])) / max(1, _dev_used(job, len(few["dev"])))
    growth = {
        "fit": _fitted_on(job, items["train"]) / max(1, _fitted_on(smaller, few["train"])),
        "dev": used,
        "first pass": 1.0,
        "receipt": min(receipt.MEASURED_ROWS, len(items["test"])) / len(few["test"]),
    }
    by_tests = len(items["test"]) / len(few["test"])
    tokens = sum(
        piece.forward_tokens
        * next((factor for name, factor in growth.items() if piece.name.startswith(name)), by_tests)
        for piece in pieces
    )
    rows = job.search.num_trials_of(len(items["test"]))
    rows += job.search.num_dev_trials_of(len(items["dev"])) if job.search.uses_dev else 0
    return Forecast(rows, tokens, rows * sum(lengths) / max(1, len(lengths)))


def _items(job: Job, split: Split) -> list[Example]:
    needed = {"test": True, "dev": job.search.uses_dev, "train": job.steers and bool(job.method.requires)}
    if split == "train" and needed[split] and _has_texts_of_its_own(job):
        return []
    if not needed[split]:
        with contextlib.suppress(ValueError):  # a task may have none, which does not matter here
            return job.task.examples(split)[:1]
        return []
    return job.task.examples(split)


def _has_texts_of_its_own(job: Job) -> bool:
    """Whether what methods learn from is no part of the task's rows, as AxBench's texts are not."""
    return type(job.task).limited is not Task.limited


def _fitted_on(job: Job, train: Sequence[Example]) -> int:
    """How many texts a fit reads."""
    if train or not _has_texts_of_its_own(job):
        return len(train)
    return len(job.task.demonstrations())


def _spread(examples: Sequence[Example], most: int, samples: int = 1) -> list[Example]:
    """Of unlike length: from the first, the middle and the last part of all, ordered by their question's length.

    Where each item has several ``samples``, they stand side by side and are taken together.
    """
    items = [examples[start : start + samples] for start in range(0, len(examples), samples)]
    ordered = sorted(items, key=lambda item: len(item[0].question))
    count = min(max(1, most // samples), len(ordered))
    chosen = {ordered[(2 * index + 1) * len(ordered) // (2 * count)][0].id for index in range(count)}
    return [example for item in items if item[0].id in chosen for example in item]


def _of_each_group(examples: Sequence[Example], most: int) -> list[Example]:
    """The first items of each group, or of each part of a group that some test items' parameters are chosen on."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.tuning or example.group, []).append(example)
    return [example for members in groups.values() for example in members[:most]]


def _dev_used(job: Job, dev: int) -> int:
    """How many of the dev items a search looks at."""
    limit = getattr(job.search, "dev_examples", None)
    return dev if limit is None else min(dev, limit)


def _lengths(generated: Generated) -> list[int]:
    trials = [trial.generation for trial in generated.store.trials()]
    texts = trials or [item.record.generation for item in generated.selected]
    return [len(text.token_ids) for text in texts]
