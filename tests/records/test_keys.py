"""What makes two runs the same: keys that a refactor leaves alone and a changed output changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from harness.laws.lab import job_of
from harness.records.keys import Keys, described, key_of
from harness.types import Method, Range

SMALL = ("model=tiny", "tracking=none", "task.limit=4", "task.train_size=8", "task.dev_size=4")
GOLDEN = {
    ("method=baseline",): "a2ab54bfb614ebc6",
    ("method=segmented",): "f92c67ff14b210f0",
    ("method=caa",): "6ea0aa4b184ba2f0",
    ("method=dsas", "task=sentiment"): "224aa94485aaca88",
}
"""Keys of generations as they lie on people's disks. A change here throws away what they computed: it needs a version
that went up by hand, and a line in the changelog."""


@pytest.mark.parametrize("overrides", GOLDEN, ids=" ".join)
def test_golden_keys(overrides: tuple[str, ...]) -> None:
    assert job_of([*SMALL, *overrides]).keys.generations == GOLDEN[overrides]


@dataclass(frozen=True)
class Plain:
    strength: float
    layers: tuple[int, ...] = (1, 2)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WithOption:
    """`Plain` with one option more, at a default that changes nothing."""

    strength: float
    layers: tuple[int, ...] = (1, 2)
    notes: Mapping[str, Any] = field(default_factory=dict)
    option: str = "as before"


def test_moving_a_class_or_adding_an_option_at_its_default_changes_no_key() -> None:
    other = type("Plain", (WithOption,), {"__module__": "elsewhere"})
    other.__qualname__ = Plain.__qualname__
    assert key_of(Plain(0.5)) == key_of(other(0.5))
    assert key_of(Plain(0.5)) != key_of(other(0.5, option="new"))


def test_what_differs_from_its_default_counts() -> None:
    assert described(Plain(0.5)) == {"class": "Plain", "version": 1, "strength": 0.5}
    assert described(Plain(0.5, (3,), {"a": 1.0})) == {
        "class": "Plain", "version": 1, "strength": 0.5, "layers": [3], "notes": {"a": 1},
    }  # fmt: skip
    assert key_of(Plain(1)) == key_of(Plain(1.0)), "however a file spells it"
    assert key_of(Plain(0.5)) != key_of(Plain(0.25))


def test_a_version_that_goes_up_changes_the_key() -> None:
    @dataclass(frozen=True, kw_only=True)
    class One(Method):
        strength: float | Range = Range(0.0, 1.0, 0.5)

    @dataclass(frozen=True, kw_only=True)
    class Two(One):
        version: ClassVar[int] = 2

    Two.__qualname__ = One.__qualname__
    assert key_of(One()) != key_of(Two())


def test_numbers_that_are_none_have_no_key() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        key_of(Plain(float("nan")))


def test_an_entry_is_a_run_without_its_seed_and_its_evaluators() -> None:
    made = {"model": "m", "seed": 0}
    first = Keys.of(made, {"evaluators": "a"}, ("all", "selected"))
    other_seed = Keys.of({**made, "seed": 1}, {"evaluators": "a"}, ("all", "selected"))
    other_scores = Keys.of(made, {"evaluators": "b"}, ("all", "selected"))
    best = Keys.of(made, {"evaluators": "a"}, ("all", "best"))
    assert first.entry == other_seed.entry == other_scores.entry != best.entry
    assert first.generations == other_scores.generations == best.generations != other_seed.generations
    assert len({keys.run for keys in (first, other_seed, other_scores, best)}) == 4


def test_seeds_belong_to_one_entry_and_evaluators_share_generations() -> None:
    jobs = [job_of([*SMALL, "method=caa", f"seed={seed}"]) for seed in (0, 1)]
    assert jobs[0].keys.entry == jobs[1].keys.entry
    assert jobs[0].keys.generations != jobs[1].keys.generations
    scored = job_of([*SMALL, "method=caa", "evaluator=token_overlap"])
    assert scored.keys.generations == jobs[0].keys.generations
    assert scored.keys.run != jobs[0].keys.run


def test_a_judge_that_nobody_calls_on_does_not_count() -> None:
    keys = [
        job_of([*SMALL, "method=baseline", "evaluator=token_overlap", judge]).keys.run
        for judge in ("judge=match", "judge=openai")
    ]
    assert keys[0] == keys[1]


def test_the_unsteered_answers_that_decide_a_subset_are_those_of_the_baseline() -> None:
    """They are made once, whoever asks for them first."""
    subset = job_of([*SMALL, "method=segmented", "protocol=baseline_failures"])
    assert subset.unsteered().keys.generations == job_of([*SMALL, "method=baseline"]).keys.generations
    baseline = job_of([*SMALL, "method=baseline", "protocol=baseline_failures"])
    assert subset.unsteered().keys.generations == baseline.keys.generations
    assert subset.keys.generations != job_of([*SMALL, "method=segmented"]).keys.generations, "the others are left out"
    assert subset.keys.entry != job_of([*SMALL, "method=segmented"]).keys.entry


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=sae", "method.dictionary.path={file}"),
        ("method=sta", "method.dictionary.path={file}"),
        ("method=stack", "+method.parts.a={{_target_:methods.sae.SparseFeature,dictionary:{dictionary}}}"),
        ("method=flas", "method.checkpoint={file}"),
    ],
)
def test_what_a_file_holds_counts(overrides: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    dictionary = f"{{_target_:harness.sparse.Dictionary,path:{file}}}"
    task = ("task=concept", "task.concept=joy") if "method=flas" in overrides else ("task=sentiment",)
    settings = ["model=tiny", *task, *(override.format(file=file, dictionary=dictionary) for override in overrides)]
    with pytest.raises(FileNotFoundError, match=r"no (autoencoder|checkpoint) at"):
        _ = job_of(settings).keys

    save_file({"tensor": torch.zeros(2)}, file)
    before = job_of(settings).keys
    save_file({"tensor": torch.ones(2)}, file)
    after = job_of(settings).keys
    assert before.generations != after.generations
    save_file({"tensor": torch.zeros(2)}, file)
    assert job_of(settings).keys == before
