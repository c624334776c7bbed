"""What the doctor foretells is what then happens, within a factor of 1.5: every search, with a cache and without, and
every control."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.generate import generate
from harness.laws.axbench_data import write_folder
from harness.laws.lab import job_of
from harness.rehearsal import rehearse

TINY = (
    "model=tiny", "tracking=none", "task.limit=9", "task.dev_size=8", "task.train_size=40", "task.max_new_tokens=6",
    "evaluator=[token_overlap]", "num_trials=4",
)  # fmt: skip
CACHED = ("method=segmented",)
WHOLE_SEQUENCE = ("method=segmented", "method.mean=sequence")
FITTED = ("method=caa",)
SEARCHES = {
    "fixed": ("search=fixed",),
    "dev_split": ("search=dev_split", "search.dev_examples=6"),
    "per_prompt": ("search=per_prompt",),
    "no incumbent": ("search=per_prompt", "search.incumbent=false"),
    "equal_kl": ("search=equal_kl", "search.target_kl=0.001"),
}
UNSTEERED = [
    ("method=baseline", "search=fixed"),
    ("method=baseline", "search=per_prompt", "control=best_of_n"),
    ("method=baseline", "search=fixed", "control=gold_in_prompt"),
]


def within(overrides: tuple[str, ...], folder: Path) -> None:
    job = dataclasses.replace(job_of([*TINY, *overrides]), out=folder)
    forecast = rehearse(job)
    real = generate(job)
    ratio = forecast.tokens / real.cost.forward_tokens
    assert 1 / 1.5 <= ratio <= 1.5, f"{forecast.tokens:.0f} foretold, {real.cost.forward_tokens} counted"
    if job.search.needs_objective:
        assert forecast.rows - len(real.selected) * (not real.cost.trials) >= real.cost.trials


@pytest.mark.parametrize("control", ["none", "shuffled", "random"])
@pytest.mark.parametrize("method", [CACHED, WHOLE_SEQUENCE, FITTED], ids=["cached", "whole sequence", "fitted"])
@pytest.mark.parametrize("search", SEARCHES)
def test_tokens(search: str, method: tuple[str, ...], control: str, tmp_path: Path) -> None:
    within((*method, *SEARCHES[search], f"control={control}"), tmp_path)


@pytest.mark.parametrize("overrides", UNSTEERED, ids=lambda overrides: overrides[-1])
def test_tokens_without_steering(overrides: tuple[str, ...], tmp_path: Path) -> None:
    within(overrides, tmp_path)


@pytest.mark.parametrize("method", ["diffmean_tokens", "probe"])
def test_tokens_of_concepts_with_strengths_of_their_own(method: str, tmp_path: Path) -> None:
    """Halves of a concept's instructions tune each other, and methods learn from texts that are no items."""
    folder = write_folder(tmp_path / "concepts")
    overrides = (
        "task=axbench_likelihood", f"task.path={folder}", f"method={method}", "evaluator=concept_likelihood",
        "search=dev_split", "search.per_group=true", "search.dev_examples=null", "task.per_concept=6",
        "task.limit=null", "task.dev_size=null",
    )  # fmt: skip
    within(overrides, tmp_path / "out")
