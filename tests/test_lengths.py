"""Prompts that do not fit into the model's context are refused before any weights load."""

import dataclasses
from pathlib import Path

import pytest

from harness import generate, steps
from harness.build import build
from harness.config import composed
from harness.job import Job
from harness.lengths import check_lengths
from harness.steps import bench_for
from harness.subject.load import Loaded

TINY = ("model=tiny", "tracking=none", "model.device=cpu", "task.limit=3")


def job_of(*overrides: str) -> Job:
    return build(*composed([*TINY, *overrides]))


def with_new_tokens(job: Job, count: int) -> Job:
    return dataclasses.replace(job, task=dataclasses.replace(job.task, max_new_tokens=count))


def no_weights(_model: object) -> Loaded:
    raise AssertionError("weights were loaded")


def sizes(job: Job) -> dict[str, int]:
    """Tokens of each test item's prompt, as the run itself renders it."""
    bench = bench_for(job, steps.subject_for(job))
    return {example.id: len(bench.subject.encode(bench.prompt(example))) for example in job.task.examples("test")}


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=baseline",),
        ("method=prompting", "model.prompt_template='Q: {question}'"),
        ("method=baseline", "search=fixed", "control=gold_in_prompt"),
        ("method=baseline", "model.chat_template=false"),
        ("method=baseline", "task=sentiment", "evaluator=sentiment"),
    ],
    ids=" ".join,
)
def test_the_longest_prompt_fits_to_the_last_token(overrides: tuple[str, ...]) -> None:
    """What is counted is what the run reads: one new token more than there is room for is refused."""
    job = job_of(*overrides)
    of_run, limit = sizes(job), job.model.context
    assert limit is not None
    longest = max(of_run, key=of_run.__getitem__)
    room = limit - of_run[longest]

    tests = job.task.examples("test")
    check_lengths(with_new_tokens(job, room), tests)
    message = f"item {longest}, has {of_run[longest]} tokens; with {room + 1} new tokens .*tiny-llama, {limit:,} "
    with pytest.raises(ValueError, match=message):
        check_lengths(with_new_tokens(job, room + 1), tests)


def test_a_choice_counts_as_what_stands_behind_the_prompt() -> None:
    job = job_of("method=baseline", "task=behaviors", "evaluator=choice")
    first, *others = job.task.examples("test")
    assert job.model.context is not None
    check_lengths(job, [first, *others])

    long = dataclasses.replace(first, choices=(first.choices[0], "word " * job.model.context))
    with pytest.raises(ValueError, match=f"item {first.id}, .* with the choice 'word word"):
        check_lengths(job, [long, *others])


def test_a_text_without_end_is_not_even_cut_into_tokens() -> None:
    job = job_of("method=baseline")
    (example, *_others) = job.task.examples("test")
    with pytest.raises(ValueError, match=r"5,000,\d+ characters"):
        check_lengths(job, [dataclasses.replace(example, question="word " * 1_000_000)])


def test_no_weights_are_loaded_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "load_model", no_weights)
    steps.forget_subjects()
    job = job_of("method=caa", f"out={tmp_path}", "task.max_new_tokens=5000")
    with pytest.raises(ValueError, match="more than the context"):
        generate.generate(job)
