"""Every method of ``conf/method`` keeps the laws; a new YAML is tried without a change here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.laws import edits as edit_laws
from harness.laws import methods as method_laws
from harness.laws.lab import Lab, lab_for
from laws.yamls import class_of, names_of, trained

METHODS = names_of("method")
STEERING = [name for name in METHODS if class_of("method", name).steers]
ONE_PER_CLASS = sorted({class_of("method", name): name for name in reversed(STEERING)}.values())
LEARNT = [name for name in METHODS if trained(name)]
OF_LLAMAS_KIND = ("flas",)
"""Methods whose networks are built like the model's blocks, which GPT-2's parts do not fit."""
ELSEWHERE = [
    (name, "gemma2" if name in OF_LLAMAS_KIND else ("gemma2", "gpt2")[place % 2])
    for place, name in enumerate(ONE_PER_CLASS)
]
Law = Callable[[Lab], None]


def named(laws: tuple[Law, ...]) -> list:
    return [pytest.param(law, id=law.__name__) for law in laws]


@pytest.mark.parametrize("law", named(method_laws.GENERAL))
@pytest.mark.parametrize("method", METHODS)
def test_method(method: str, law: Law) -> None:
    law(lab_for(method))


@pytest.mark.parametrize("law", named(edit_laws.STEERING))
@pytest.mark.parametrize("method", STEERING)
def test_steering(method: str, law: Law) -> None:
    law(lab_for(method))


@pytest.mark.parametrize("method", METHODS)
def test_artifact_survives_save_and_load(method: str, tmp_path: Path) -> None:
    method_laws.artifact_survives_save_and_load(lab_for(method), tmp_path)


@pytest.mark.parametrize("method", LEARNT)
def test_training(method: str, tmp_path: Path) -> None:
    lab = lab_for(method)
    assert method_laws.trains(lab.job.method)
    assert method_laws.interrupted_training_ends_the_same(lab, tmp_path), "nothing was trained"


@pytest.mark.parametrize(
    "law",
    named(
        (
            method_laws.identity_at_null,
            edit_laws.steering_changes_the_model,
            method_laws.batches_and_cache_change_nothing,
            edit_laws.hooks_are_gone_after_an_exception,
        )
    ),
)
@pytest.mark.parametrize(("method", "family"), ELSEWHERE)
def test_on_another_family(method: str, family: str, law: Law) -> None:
    law(lab_for(method, family))
