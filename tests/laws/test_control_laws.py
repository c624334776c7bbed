"""Every control of ``conf/control`` works with every method, and what either is shown is what it declares."""

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from harness.checks import check
from harness.control import Control
from harness.generate import generate
from harness.job import Job
from harness.laws.lab import Lab, composed, job_for, lab_for, spread, workbench_of
from harness.laws.measure import hooks_of
from harness.types import Access, Artifact, Example, FitData, Method, Subject
from harness.workbench import Request, Workbench
from laws.yamls import class_of, names_of

METHODS, CONTROLS = names_of("method"), names_of("control")
STEERING = [name for name in METHODS if class_of("method", name).steers]
Seen = dict[str, list]


@cache
def control_named(name: str) -> Control:
    return instantiate(composed([f"control={name}"])[0].control, _convert_="all")


@cache
def plain_job(method: str) -> Job:
    return lab_for(method).job


def job_under(method: str, control: str) -> Job:
    return dataclasses.replace(plain_job(method), control=control_named(control))


def requests_for(bench: Workbench, job: Job) -> list[Request]:
    examples = job.task.examples("test")[:3]
    sets = spread(job.method.parameters(bench.subject.layout), len(examples))
    if job.method.couples_rows:  # samples of one prompt are steered alike
        sets = sets[:1] * len(examples)
    return [Request(e, p, 0, job.control.temperature) for e, p in zip(examples, sets, strict=True)]


def spied(method: Method, seen: Seen, known: Lab) -> Method:
    """The same method, noting what it is handed; what was fitted on the same data before is not fitted again."""
    kind = type(method)

    def fit(self: Method, subject: Subject, data: FitData) -> Artifact:
        seen["fit"].append(data)
        same = data == known.job.task.fit_data(method.requires)
        return known.bench.artifact if same else kind.fit(self, subject, data)

    def condition(self: Method, subject: Subject, artifact: Artifact, examples: Sequence[Example]) -> Artifact:
        seen["examples"] += examples
        return kind.condition(self, subject, artifact, examples)

    spy = type(f"Spied{kind.__name__}", (kind,), {"fit": fit, "condition": condition})
    return spy(**{item.name: getattr(method, item.name) for item in dataclasses.fields(method) if item.init})


def tells_the_answer(example: Example) -> bool:
    return bool(
        example.answer or example.aliases or example.distractors or example.metadata or example.target is not None
    )


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("method", METHODS)
class TestEveryPair:
    def test_fits_together(self, method: str, control: str) -> None:
        job = job_under(method, control)
        if control in ("random", "shuffled") and not job.method.steers:
            with pytest.raises(ValueError, match="steers nothing"):
                check(job)
            return
        check(job)

    def test_runs_and_is_shown_what_it_declares(self, method: str, control: str) -> None:
        seen: Seen = {"fit": [], "examples": []}
        job = job_under(method, control)
        job = dataclasses.replace(job, method=spied(job.method, seen, lab_for(method)))
        bench = workbench_of(job)
        bench.fit()
        requests = requests_for(bench, job)
        generations = bench.run(requests)
        assert [generation.example_id for generation in generations] == [request.example.id for request in requests]
        assert hooks_of(bench.subject.network) == 0
        self._only_what_is_required(job, seen)
        self._gold_only_where_declared(job, seen)

    @staticmethod
    def _only_what_is_required(job: Job, seen: Seen) -> None:
        steers = job.method.steers and job.control.steers
        assert len(seen["fit"]) == steers
        for data in seen["fit"]:
            assert bool(data.pairs) == ("pairs" in job.method.requires)
            assert bool(data.source) == bool(data.target) == bool(data.control) == ("texts" in job.method.requires)
            assert bool(data.labelled) == ("labelled" in job.method.requires)
            assert bool(data.demonstrations) == ("demonstrations" in job.method.requires)

    @staticmethod
    def _gold_only_where_declared(job: Job, seen: Seen) -> None:
        told = [tells_the_answer(example) for example in seen["examples"]]
        assert bool(told) == bool(job.method.steers and job.control.steers and job.method.parameters(job.layout))
        assert all(told) if Access.GOLD in job.method.access else not any(told)


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_is_shown_the_answer_only_where_it_declares_it(control: str) -> None:
    seen: list[Example] = []
    kind = type(control_named(control))

    def instruction(self: Control, example: Example) -> str:
        seen.append(example)
        return kind.instruction(self, example)

    spy = type("SpiedControl", (kind,), {"instruction": instruction})(**vars(control_named(control)))
    job = dataclasses.replace(plain_job("baseline"), control=spy)
    bench, examples = workbench_of(job), job.task.examples("test")
    prompts = [bench.prompt(example) for example in examples]
    shown = Access.GOLD in kind.access
    assert [tells_the_answer(example) for example in seen] == [shown] * len(examples)
    told = [example.answer in prompt for example, prompt in zip(examples, prompts, strict=True)]
    assert told == [shown or example.answer in example.question for example in examples]


@pytest.mark.parametrize("method", METHODS)
def test_evaluators_see_the_prompt_that_the_model_read(method: str) -> None:
    lab = lab_for(method)
    for request, generation in zip(lab.requests, lab.bench.run(lab.requests), strict=True):
        made = lab.bench.record(request.example, generation)
        assert made.prompt == lab.bench.prompt(request.example)
        assert lab.bench.subject.encode(made.prompt) in lab.prompts()


@pytest.mark.parametrize("method", STEERING)
def test_a_random_direction_goes_as_far_and_stays_with_its_example(method: str) -> None:
    lab, job = lab_for(method), job_under(method, "random")
    bench = workbench_of(job)
    bench.adopt(lab.bench.artifact)
    aimed, random = lab.intervention(), bench.intervention(lab.requests)
    assert set(aimed.edits) == set(random.edits)
    first, last = 0, len(lab.requests) - 1  # the same example twice
    assert lab.requests[first].example is lab.requests[last].example
    for edit in random.edits.values():
        direction = edit.direction  # pyright: ignore[reportAttributeAccessIssue]
        torch.testing.assert_close(direction.norm(dim=-1), torch.ones(len(lab.requests)))
        assert torch.equal(direction[first], direction[last])
        assert not torch.equal(direction[first], direction[1])


def test_shuffled_feeds_each_example_another() -> None:
    job = job_under("full_layer", "shuffled")
    seen: Seen = {"fit": [], "examples": []}
    job = dataclasses.replace(job, method=spied(job.method, seen, lab_for("full_layer")))
    bench = workbench_of(job)
    examples = job.task.examples("test")
    bench.intervention([Request(example, job.method.defaults(job.layout)) for example in examples])
    fed = [example.id for example in seen["examples"]]
    assert sorted(fed) == sorted(example.id for example in examples)
    assert all(other != example.id for other, example in zip(fed, examples, strict=True))


@pytest.mark.parametrize("control", CONTROLS)
def test_whole_jobs_run_and_prove_that_they_steered(control: str, tmp_path: Path) -> None:
    for method in ("caa", "full_layer"):
        job = job_for(method, f"control={control}", "search=fixed", f"out={tmp_path}", "task.max_new_tokens=3")
        made = generate(job)
        assert len(made.selected) == len(job.task.examples("test"))
        assert (made.receipt is not None) == job.steers
        if made.receipt:
            assert made.receipt.sites_hit > 0
        assert (Access.GOLD in job.access) == (control == "gold_in_prompt" or (method == "full_layer" and job.steers))
