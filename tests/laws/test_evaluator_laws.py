"""Every evaluator of ``conf/evaluator`` keeps the laws; a new YAML is tried without a change here."""

from collections.abc import Callable, Iterable
from functools import cache

import pytest
from hydra.utils import instantiate

from harness.laws import evaluators as evaluator_laws
from harness.laws.lab import composed
from harness.types import Evaluator
from laws.tiny_classifier import classifier_folder
from laws.yamls import class_of, names_of

EVALUATORS = names_of("evaluator")
Law = Callable[[Evaluator], None]


@cache
def evaluator_named(name: str) -> Evaluator:
    own = [f"evaluator.toxicity.model={classifier_folder()}"] if name == "toxicity" else []
    config, _ = composed([f"evaluator=[{name}]", *own])
    return instantiate(config.evaluator[name], _convert_="all")


def named(laws: Iterable[Law]) -> list:
    return [pytest.param(law, id=law.__name__) for law in laws]


@pytest.mark.parametrize("law", named(evaluator_laws.LAWS))
@pytest.mark.parametrize("name", EVALUATORS)
def test_evaluator(name: str, law: Law) -> None:
    law(evaluator_named(name))


@pytest.mark.parametrize("law", named(evaluator_laws.WITH_TOOLS))
@pytest.mark.parametrize("name", [name for name in EVALUATORS if class_of("evaluator", name).needs])
def test_with_tools(name: str, law: Law) -> None:
    law(evaluator_named(name))


@pytest.mark.parametrize("law", named(evaluator_laws.WITH_CHOICES))
@pytest.mark.parametrize("name", [name for name in EVALUATORS if class_of("evaluator", name).choices])
def test_with_choices(name: str, law: Law) -> None:
    law(evaluator_named(name))
