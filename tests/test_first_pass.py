"""Mistakes of plug-in authors: each is named by its class and site at the first pass, before anything is searched."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.control import Control
from harness.first_pass import ContractError, check_first_pass
from harness.subject.load import Loaded
from harness.subject.scorers import open_subject
from harness.tasks.facts import Facts
from harness.types import Artifact, Carry, Edit, Intervention, Method, Site, Where, shared
from harness.workbench import Request, Workbench

AT = Site(1)


@dataclass(frozen=True, eq=False)
class Good(Edit):
    strength: Tensor

    def apply(self, h: Tensor, where: Where, carry: Carry) -> Any:
        return where.keep(h + self.strength[:, None, None], h), {**carry, where.key("seen"): self.strength}


class OnlyState(Good):
    def apply(self, h: Tensor, where: Where, carry: Carry) -> Any:
        return h + 1


class NoMapping(Good):
    def apply(self, h: Tensor, where: Where, carry: Carry) -> Any:
        return h + 1, [self.strength]


class Narrower(Good):
    def apply(self, h: Tensor, where: Where, carry: Carry) -> Any:
        return h[..., :-1], carry


class InPlace(Good):
    def apply(self, h: Tensor, where: Where, carry: Carry) -> Any:
        h += 1
        return h, carry


class MixesRows(Good):
    def apply(self, h: Tensor, where: Where, carry: Carry) -> Any:
        return where.keep(h - h.mean(0, keepdim=True), h), carry


class NumberInCarry(Good):
    def apply(self, h: Tensor, where: Where, carry: Carry) -> Any:
        return h + 1, {"count": torch.tensor(3)}


@dataclass(frozen=True, eq=False)
class Shared(Good):
    direction: Tensor = shared(default_factory=lambda: torch.ones(3))


@dataclass(frozen=True, kw_only=True)
class Pushing(Method):
    """Hands over whatever it is told to."""

    makes: Callable[[Tensor], Any]
    strength: float = 1.0

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Any:
        return self.makes(parameters["strength"])


@pytest.fixture
def check(load_tiny: Callable[..., Loaded]) -> Callable[[Callable[[Tensor], Any]], None]:
    """Looks at the first pass of a method that makes this from its strengths."""

    def look(makes: Callable[[Tensor], Any]) -> None:
        task = Facts(limit=3, max_new_tokens=4)
        bench = Workbench(open_subject(load_tiny()), task, Pushing(makes=makes), Control(), 0)
        check_first_pass(bench, [Request(example, {"strength": 1.0}) for example in task.examples("test")])

    return look


@pytest.mark.parametrize("edit", [Good, Shared])
def test_edits_that_keep_the_contract_pass(check: Callable, edit: type[Edit]) -> None:
    check(lambda strength: Intervention({AT: edit(strength)}))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (OnlyState, "must return the new state and the carry, got a Tensor"),
        (NoMapping, "must return a mapping of tensors as the carry, got a list"),
        (Narrower, "changed the shape of the state from"),
        (InPlace, "changed the state in place"),
        (MixesRows, "mixes rows"),
        (NumberInCarry, "carry['count'] must be a tensor with 2 rows, got a single number"),
    ],
)
def test_a_wrong_apply_is_named_with_its_site(check: Callable, edit: type[Edit], words: str) -> None:
    with pytest.raises(ContractError) as caught:
        check(lambda strength: Intervention({AT: edit(strength)}))
    assert str(caught.value).startswith(f"{edit.__name__}")
    assert "at 1.block" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("makes", "words"),
    [
        (lambda strength: {AT: Good(strength)}, "Pushing.intervention must return an Intervention, got a dict"),
        (lambda strength: Intervention({AT: 3}), "edits[1.block] must be an Edit, got a int"),
        (lambda strength: Intervention({1: Good(strength)}), "the keys of edits must be Sites, got 1"),
        (lambda strength: Intervention({AT: Good(strength[0])}), "Good at 1.block: strength must have one row"),
        (lambda strength: Intervention({AT: Good(torch.ones(64))}), "got the shape [64]"),
    ],
    ids=["a table", "a number", "a layer", "a scalar", "a vector of the width"],
)
def test_a_wrong_intervention_is_named(check: Callable, makes: Callable, words: str) -> None:
    with pytest.raises(ContractError) as caught:
        check(makes)
    assert words in str(caught.value)
