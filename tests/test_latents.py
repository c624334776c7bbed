"""Runs that read latents: stored once, scored from disk alone, and gone on with after a kill."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evaluators.detection import Detection
from harness.commands.score import score
from harness.generate import generate
from harness.job import Job
from harness.laws.axbench_data import write_folder
from harness.laws.lab import job_of, workbench_of
from harness.records.run import LATENTS_FILE
from harness.records.stored import read_run
from harness.run import run
from harness.types import Method, Site, Tools
from harness.workbench import Request, Workbench


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """Makes a job on a small AxBench folder and the tiny model."""
    data = write_folder(tmp_path / "data")

    def make(*overrides: str, method: str = "diffmean_tokens") -> Job:
        common = ("model=tiny", "model.dtype=float64", "tracking=none", f"task.path={data}", f"out={tmp_path / 'runs'}")
        return job_of(["task=axbench_likelihood", "task.per_concept=4", f"method={method}", *common, *overrides])

    return make


DETECTION = "evaluator=[detection]"


def test_detection_alone_generates_nothing_and_needs_no_receipt(job: Callable[..., Job]) -> None:
    folder, record = run(job(DETECTION))
    assert record.status == "done"
    assert record.receipt is None
    assert record.cost.trials == 0
    assert set(record.files) == {LATENTS_FILE, "scores.jsonl"}
    stored = read_run(folder)
    assert list(stored.selected) == ["concept-000", "concept-001", "concept-002"]
    scores = Detection().score([item.record for item in stored.selected.values()], Tools())
    ours = {s.example_id: s.value for s in scores if s.metric == "auroc"}
    assert ours == stored.scores["auroc"]


def test_detection_alone_asks_for_no_instructions(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of ``task.prompts=alpaca_eval`` would come from the hub."""

    def fetched(origin: str) -> list[str]:
        raise AssertionError(f"{origin} was fetched")

    monkeypatch.setattr("harness.tasks.axbench.read_prompts", fetched)
    overrides = ("task=axbench", "task.prompts=alpaca_eval", "search=dev_split")
    _folder, record = run(job(DETECTION, *overrides))
    assert record.status == "done"
    with pytest.raises(AssertionError, match="alpaca_eval was fetched"):
        job(*overrides, "evaluator=[axbench]", "judge=match")


def test_latents_are_those_of_each_texts_own_concept_behind_the_prefix(job: Callable[..., Job]) -> None:
    """Recomputed text by text, from a pass of its own."""
    bench = workbench_of(job(DETECTION))
    bench.fit()
    examples = bench.task.latent_examples()
    records = bench.read_latents(examples)

    method, subject = bench.method, bench.subject
    layer = int(method.defaults(subject.layout)["layer"])
    place = bench.artifact["layers"].tolist().index(layer)

    for number, record in enumerate(records):
        axis = bench.artifact["vector"][number, place]
        axis = axis / axis.norm()
        for text, latent in zip(record.example.metadata["texts"], record.generation.latents, strict=True):
            (chunk,) = subject.capture_tokens([text[0]], [text[1]], [Site(layer)])
            behind = chunk.states[Site(layer)][chunk.position >= subject.prefix_length]
            assert latent == pytest.approx(float((behind @ axis).max()), rel=1e-5)


def test_the_largest_latent_of_held_out_texts_is_the_unit_of_strength(job: Callable[..., Job]) -> None:
    bench = workbench_of(job(DETECTION, "method.normalise=peak"))
    bench.fit()
    records = bench.read_latents(bench.task.latent_examples())
    layer = int(bench.method.defaults(bench.subject.layout)["layer"])
    place = bench.artifact["layers"].tolist().index(layer)
    lengths = bench.artifact["vector"][:, place].norm(dim=-1)
    peaks = torch.tensor([max(record.generation.latents) for record in records]).to(lengths)
    torch.testing.assert_close(lengths, torch.where(peaks > 0, peaks, 50.0), rtol=1e-5, atol=1e-5)


def test_one_run_holds_both_kinds_of_records_and_a_second_takes_the_latents_up(job: Callable[..., Job]) -> None:
    likelihood = ("evaluator=[concept_likelihood]", "search=fixed")
    folder, first = run(job(*likelihood))
    assert LATENTS_FILE not in first.files
    both, second = run(job("evaluator=[concept_likelihood,detection]", "search=fixed"))
    assert second.generations == first.generations, "the same generations, with latents beside them"
    assert second.estimates["concept_logratio"] == first.estimates["concept_logratio"]
    assert second.estimates["auroc"].num_scored == 3
    assert list(read_run(folder).selected) == [e.id for e in job().task.examples("test")]
    assert len(read_run(both).selected) == len(job().task.examples("test")) + 3


def test_methods_and_controls_that_detect_nothing_are_unscored(job: Callable[..., Job]) -> None:
    for overrides in ({"method": "baseline"}, {"method": "diffmean_tokens", "control": "random"}):
        _, record = run(
            job(DETECTION, *[f"{k}={v}" for k, v in overrides.items() if k != "method"], method=overrides["method"])
        )
        assert record.estimates["auroc"].num_scored == 0
        assert record.status == "done"


def test_shuffled_texts_leave_nothing_of_the_concept(job: Callable[..., Job]) -> None:
    _, own = run(job(DETECTION))
    _, shuffled = run(job(DETECTION, "control=shuffled"))
    assert own.generations != shuffled.generations
    assert own.estimates["auroc"] != shuffled.estimates["auroc"]


def test_a_kill_after_the_fit_keeps_the_fit(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generate(job(DETECTION, "out=" + str(job(DETECTION).out) + "-whole"))

    def killed(self: Workbench, examples: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Workbench, "read_latents", killed)
        with pytest.raises(KeyboardInterrupt):
            generate(job(DETECTION))

    def refitted(self: Method, *args: object) -> None:
        raise AssertionError("fitted twice")

    patched = job(DETECTION)
    monkeypatch.setattr(type(patched.method), "fit", refitted)
    again = generate(patched)
    assert [item.record.generation for item in again.selected] == [item.record.generation for item in whole.selected]


def test_latents_can_be_scored_again_without_the_model(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record = run(job(DETECTION))
    monkeypatch.setattr("harness.steps.subject_for", lambda job: pytest.fail("the model was loaded"))
    _, again = score(folder, ["evaluator=[detection]", "evaluator.detection.max_unscored=0.9", "name=again"])
    assert again.estimates == record.estimates


def test_damaged_latents_are_noticed(job: Callable[..., Job]) -> None:
    folder, record = run(job(DETECTION))
    path = folder / str(record.generations) / LATENTS_FILE
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["latents"][0] += 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"latents\.jsonl"):
        read_run(folder)


class TestRefusals:
    def test_a_task_without_held_out_texts(self) -> None:
        with pytest.raises(
            ValueError, match="evaluator detection scores latents in held-out texts; task facts has none"
        ):
            job_of(["model=tiny", "tracking=none", DETECTION, "method=caa"])

    def test_a_group_that_was_not_fitted(self, job: Callable[..., Job]) -> None:
        bench = workbench_of(job(DETECTION))
        bench.fit()
        example = bench.task.latent_examples()[0]
        with pytest.raises(ValueError, match=r"concept-000, concept-001, concept-002\), got 'concept-9'"):
            bench.read_latents([dataclasses.replace(example, group="concept-9")])

    def test_the_wrong_judge(self, job: Callable[..., Job]) -> None:
        with pytest.raises(ValueError, match="judge=match grades simpleqa, simpleqa_verified only"):
            job("task=axbench")


@pytest.mark.parametrize("method", ["pca", "lat", "diffmean", "caa"])
def test_methods_that_detect(job: Callable[..., Job], method: str) -> None:
    _, record = run(job(DETECTION, method=method))
    assert record.estimates["auroc"].num_scored == 3


@pytest.mark.parametrize("overrides", [[], ["control=shuffled"]])
def test_rows_of_different_concepts_share_a_batch(job: Callable[..., Job], overrides: list[str]) -> None:
    """Log-probabilities of all items together are those of each item alone."""
    bench = workbench_of(job("evaluator=[concept_likelihood]", "search=fixed", *overrides))
    bench.fit()
    parameters = bench.method.defaults(bench.subject.layout)
    requests = [Request(example, dict(parameters)) for example in bench.task.examples("test")]
    together = bench.run(requests)
    alone = [bench.run([request])[0] for request in requests]
    for one, other in zip(together, alone, strict=True):
        assert one.choice_logprobs == pytest.approx(other.choice_logprobs, rel=1e-9)
