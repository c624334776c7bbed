"""What the workbench hands over: concepts, instructions, devices, a place to train in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from harness import generate as generating
from harness.control import Control
from harness.directions import AddVector
from harness.laws.lab import job_for
from harness.subject.load import Loaded
from harness.subject.scorers import open_subject
from harness.tasks.facts import Facts
from harness.types import Access, Artifact, Example, FitData, Intervention, Method, Site, Subject
from harness.workbench import Request, Workbench
from harness.workspace import Workspace
from methods.reft_r1 import LatentLearner

SEEN: list[Example] = []


@dataclass(frozen=True, kw_only=True)
class Looking(Method):
    """Notes what it is shown, and reads the prompts' last states; the direction is made on the CPU."""

    strength: float = 1.0

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        return {"direction": torch.ones(subject.layout.width)}

    def condition(self, subject: Subject, artifact: Artifact, examples: Sequence[Example]) -> Artifact:
        SEEN.extend(examples)
        questions = [example.question for example in examples]
        return {"state": subject.capture(questions, None, [Site(1)], pool="last")[Site(1)]}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        return Intervention({Site(1): AddVector(condition["state"] * artifact["direction"])})


@dataclass(frozen=True, kw_only=True)
class WithConcept(Looking):
    access: ClassVar = frozenset({Access.CONCEPT})


@dataclass(frozen=True, kw_only=True)
class WithGold(Looking):
    access: ClassVar = frozenset({Access.GOLD})


@pytest.fixture
def bench(load_tiny: Callable[..., Loaded]) -> Callable[[Method], Workbench]:
    task = Facts(limit=3, train_size=4, max_new_tokens=2)
    return lambda method: Workbench(open_subject(load_tiny()), task, method, Control(), 0)


@pytest.mark.parametrize(
    ("method", "concept", "answer"),
    [(Looking(), "", ""), (WithConcept(), "numbers", ""), (WithGold(), "", "42")],
    ids=["nothing", "concept", "gold"],
)
def test_methods_see_the_concept_only_where_they_declare_it(
    bench: Callable, method: Method, concept: str, answer: str
) -> None:
    SEEN.clear()
    workbench = bench(method)
    workbench.fit()
    example = Example("1", "What?", "42", concept="numbers")
    workbench.intervention([Request(example, {"strength": 1.0})])
    assert [(shown.concept, shown.answer) for shown in SEEN] == [(concept, answer)]


def test_fits_and_conditions_read_prompts_with_the_runs_instruction(bench: Callable) -> None:
    method = Looking(instruction="Answer in one word.")
    workbench = bench(method)
    workbench.fit()
    example = workbench.task.examples("test")[0]
    steered = workbench.intervention([Request(example, {"strength": 1.0})]).edits[Site(1)].vector
    read = workbench.subject.capture(
        [workbench.prompt(example).removeprefix("<bos>")], None, [Site(1)], pool="last", raw=True
    )
    torch.testing.assert_close(steered, read[Site(1)])
    assert method.instruction in workbench.prompt(example)
    assert workbench.prompt(example).count(method.instruction) == 1

    plain = bench(Looking())
    plain.fit()
    other = plain.intervention([Request(example, {"strength": 1.0})]).edits[Site(1)].vector
    assert not torch.allclose(steered, other)


def test_what_is_fitted_moves_to_where_the_model_lives(bench: Callable) -> None:
    workbench = bench(Looking())
    elsewhere = dataclasses.replace(workbench.subject.network, device=torch.device("meta"))
    workbench.subject = dataclasses.replace(workbench.subject, network=elsewhere)
    assert workbench.fit()["direction"].device.type == "meta"
    assert workbench.artifact["direction"].device.type == "meta"


def test_a_fit_that_breaks_off_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.steps.Workspace", partial(Workspace, save_every=0.0))
    settings = ("search=fixed", "method.training.epochs=3")
    jobs = [job_for("reft_r1", *settings, f"out={tmp_path / name}") for name in ("whole", "broken")]
    steps = 0

    def after_step(self: LatentLearner) -> None:
        nonlocal steps
        steps += 1
        if steps == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(LatentLearner, "after_step", after_step)
    stop = -1
    whole = generating.generate(jobs[0])
    in_all, steps, stop = steps, 0, 9
    with pytest.raises(KeyboardInterrupt):
        generating.generate(jobs[1])
    (checkpoint,) = (tmp_path / "broken").rglob("*.pt")
    steps, stop = 0, -1
    broken = generating.generate(jobs[1])

    assert steps == in_all - 8, "the step that broke off was not finished"
    assert not checkpoint.parent.exists()
    first, second = ((made.store.folder / "artifact.safetensors").read_bytes() for made in (whole, broken))
    assert first == second
    assert whole.cost.fit_tokens > whole.cost.fit_examples > 0
    for part in ("fit_examples", "fit_tokens"):
        assert getattr(broken.cost, part) == getattr(whole.cost, part)
