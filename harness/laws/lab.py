"""Where laws are checked: a method from its YAML, fitted on a tiny model, with rows of different parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch

from harness.build import build
from harness.config import composed
from harness.job import Job
from harness.laws.tiny_concepts import concepts_folder
from harness.laws.tiny_vector import vector_file
from harness.nodes import class_of
from harness.subject.batch import Decoded
from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject
from harness.subject.passes import groups_of
from harness.subject.sampling import Sampling
from harness.subject.scorers import open_subject
from harness.subject.sizes import EngineConfig
from harness.types import Access, Artifact, Intervention, Layout, Method, Parameters, Range
from harness.workbench import Request, Workbench

SHIPPED_TASKS = ("facts", "behaviors", "sentiment")
"""Tasks that need no download."""
ROWS, NEW_TOKENS = 6, 4
_SMALL = (
    "model=tiny",
    "model.dtype=float64",
    "tracking=none",
    "task.train_size=24",
    f"task.limit={ROWS}",
    f"task.max_new_tokens={NEW_TOKENS}",
)


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny products take longer with several threads than with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def expected(error: type[Exception], *words: str) -> Iterator[None]:
    """What happens inside must fail with an error of this type that says one of the words, if there are any.

    Raises:
        AssertionError: nothing failed, or the error says something else.
    """
    try:
        yield
    except error as raised:
        message = str(raised)
        assert not words or any(word in message for word in words), f"the error says {message!r}, not {words}"
    else:
        raise AssertionError(f"nothing failed; a {error.__name__} was due")


def job_of(overrides: Sequence[str]) -> Job:
    """The job that the command line ``python -m harness`` with these overrides would run."""
    return build(*composed(overrides))


_SHORT_TRAINING = ("method.training.epochs=1", "method.training.learning_rate=0.02")
"""Laws hold after any training; a short one with large steps is enough to steer."""
_SAMPLES = ("task.limit=2", f"task.num_samples={ROWS // 2}", "task.temperature=1.0")
"""For methods that steer samples of one prompt together: as many rows, of two prompts."""
_FEW = {"num_vectors": 16, "new_tokens": 4, "reply_tokens": 4, "nodes": 3}
"""Laws hold for any number of what a fit repeats."""
_CONCEPTS = ("task.halves=both", "task.per_concept=2", "judge=local", "model@judge.model=tiny")
"""Settings of a task of concepts in words, for methods that learn from these; none of the shipped ones has them."""


def job_for(method: str, *overrides: str, family: str = "llama") -> Job:
    """A small job of a method, on the first task that offers what the method requires.

    Args:
        method: name of a YAML of the group ``method``.
        overrides: further settings; they come last, so they win.
        family: architecture of the tiny model.

    Raises:
        ValueError: no task offers what the method requires.
    """
    node = composed([f"method={method}", *overrides])[0].method
    few = [f"method.{name}={number}" for name, number in _FEW.items() if name in node]
    training = _SHORT_TRAINING if "training" in node else ()
    files = (f"method.path={vector_file()}",) if method == "vector" else ()
    samples = _SAMPLES if class_of(node["_target_"], Method, "method").couples_rows else ()

    refusals = []
    tasks = [[f"task={task}"] for task in SHIPPED_TASKS]
    tasks.append(["task=axbench", f"task.path={concepts_folder()}", *_CONCEPTS])
    for task in tasks:
        settings = [f"method={method}", *_SMALL, *samples, *files, *training, *few, f"model.family={family}", *task]
        try:
            job = job_of([*settings, *overrides])
        except ValueError as error:
            if "the method needs" not in str(error):
                raise
            refusals.append(str(error))
            continue
        if _learns_words(job.method) and not all(shown.concept for shown in job.task.demonstrations()):
            refusals.append(f"task {task[0]} names no concepts to learn from")
            continue
        return job
    raise ValueError(f"no task of the laws offers what {method} requires: {'; '.join(refusals)}")


def _learns_words(method: Method) -> bool:
    """Whether a method reads the words of the concepts of its training texts."""
    return Access.CONCEPT in method.access and bool(method.requires)


@cache
def _subject(family: str, dtype: str) -> LocalSubject:
    config = ModelConfig(kind="tiny", family=family, device="cpu", dtype=dtype)  # pyright: ignore[reportArgumentType]
    subject = open_subject(load_model(config))
    # Many tokens stop a completion, so that rows end at different times.
    stops = frozenset(range(0, subject.network.model.config.get_text_config().vocab_size, 9))
    return dataclasses.replace(subject, network=dataclasses.replace(subject.network, stop_ids=stops))


def workbench_of(job: Job) -> Workbench:
    """A bench for the job, on a tiny model that is loaded once per session; nothing is fitted yet."""
    subject = _subject(str(job.model.config.family), job.model.config.dtype)
    bench = Workbench(subject, job.task, job.method, job.control, job.seed)
    bench.feed(job.task.examples("test"))
    return bench


def spread(parameters: dict[str, float | Range], rows: int) -> list[Parameters]:
    """Parameters for each row: all over the ranges, but never at their lower end, which may be the identity."""
    points: list[Parameters] = []
    for row in range(rows):
        values = {}
        for place, (name, value) in enumerate(parameters.items()):
            share = ((row * (2 * place + 1) + place) % rows + 1) / rows
            values[name] = _inside(value, share) if isinstance(value, Range) else value
        points.append(values)
    return points


def _inside(bounds: Range, share: float) -> float:
    assert bounds.high is not None
    if bounds.log:
        value = math.exp(math.log(bounds.low) + share * (math.log(bounds.high) - math.log(bounds.low)))
    else:
        value = bounds.low + share * (bounds.high - bounds.low)
    return float(round(value)) if bounds.integer else value


@dataclass(frozen=True, eq=False)
class Lab:
    """A fitted method and the rows that laws are checked on; the last row asks the first row's question again."""

    job: Job
    bench: Workbench
    requests: tuple[Request, ...]

    @classmethod
    def of(cls, job: Job, artifact: Artifact | None = None) -> Lab:
        """Fit the job's method, unless fitted tensors are given, and give each row parameters of its own."""
        bench = workbench_of(job)
        if artifact is None:
            bench.fit()
        else:
            bench.adopt(artifact)
        examples = job.task.examples("test")
        examples = [*examples, examples[0]]
        sets = spread(job.method.parameters(bench.subject.layout), len(examples))
        if job.method.couples_rows:  # samples are steered alike; the last row, which is not, is a sample of its own
            first = {example.unit: place for place, example in reversed(list(enumerate(examples[:-1])))}
            sets = [*(sets[first[example.unit]] for example in examples[:-1]), sets[-1]]
        return cls(job, bench, tuple(Request(e, p, 0) for e, p in zip(examples, sets, strict=True)))

    @property
    def layout(self) -> Layout:
        """Shape of the tiny model."""
        return self.bench.subject.layout

    def intervention(self) -> Intervention:
        """The edits of all rows."""
        return self.bench.intervention(self.requests)

    def units(self) -> list[list[int]]:
        """Rows that depend on each other, and on no others: each on its own, or samples of one prompt."""
        groups = self.intervention().groups
        return [[row] for row in range(len(self.requests))] if groups is None else groups_of(groups)

    def alone(self, rows: Sequence[int]) -> Intervention:
        """The edits of these rows, made for them alone."""
        return self.bench.intervention([self.requests[row] for row in rows])

    def prompts(self) -> list[tuple[int, ...]]:
        """Token ids of each row's prompt."""
        return [self.bench.subject.encode(self.bench.prompt(request.example)) for request in self.requests]

    def decode(
        self,
        intervention: Intervention,
        rows: Sequence[int] | None = None,
        at_once: int = 64,
        stop_ids: frozenset[int] | None = None,
    ) -> list[Decoded]:
        """Greedy completions of the chosen rows; the intervention is row-leading over these."""
        prompts = self.prompts()
        chosen = prompts if rows is None else [prompts[row] for row in rows]
        subject = dataclasses.replace(self.bench.subject, engine=EngineConfig(max_rows=at_once))
        if stop_ids is not None:
            subject = dataclasses.replace(subject, network=dataclasses.replace(subject.network, stop_ids=stop_ids))
        return subject.decode(chosen, intervention, Sampling(NEW_TOKENS))


@cache
def lab_for(method: str, family: str = "llama") -> Lab:
    """The method of a YAML, fitted once per session and family."""
    return Lab.of(job_for(method, family=family))


def early_stops(rows: Sequence[tuple[int, ...]]) -> frozenset[int]:
    """Tokens that end rows at different times: the first row after one token, the second after two, and so on."""
    return frozenset(row[place] for place, row in enumerate(rows[: NEW_TOKENS - 1], start=1))


def cut(row: tuple[int, ...], stop_ids: frozenset[int]) -> tuple[int, ...]:
    """The row up to its first stop."""
    ends = [place for place, token in enumerate(row) if token in stop_ids]
    return row[: ends[0]] if ends else row


def ids(rows: Sequence[Decoded]) -> list[tuple[int, ...]]:
    """What was written."""
    return [row.token_ids for row in rows]


def row_index(rows: Sequence[int]) -> torch.Tensor:
    """Rows as `take` wants them."""
    return torch.tensor(list(rows), dtype=torch.long)
