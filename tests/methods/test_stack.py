"""Stacks: a part alone is itself, two vectors at one site are their sum, and parts do not see each other's memory."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from harness.laws.lab import Lab, ids, job_for, job_of
from harness.types import Artifact, Carry, Edit, Intervention, Layout, Method, Probe, Range, Site, Where
from methods.stack import Stack, StackedEdit

LAYOUT = Layout(num_layers=4, width=6, num_heads=2, head_width=3)
SMALL = ("model=tiny", "model.dtype=float64", "tracking=none", "task=facts", "task.limit=4")


@dataclass(frozen=True, eq=False)
class Add(Edit):
    vector: Tensor

    def apply(self, h: Tensor, where: Where, carry: Carry) -> tuple[Tensor, Carry]:
        return where.keep(h + self.vector[:, None], h, "all"), carry


@dataclass(frozen=True, eq=False)
class Double(Edit):
    def apply(self, h: Tensor, where: Where, carry: Carry) -> tuple[Tensor, Carry]:
        return where.keep(2 * h, h, "all"), carry


@dataclass(frozen=True, eq=False)
class Count(Edit):
    """Adds how often it was here before: what it carries decides."""

    start: Tensor

    def apply(self, h: Tensor, where: Where, carry: Carry) -> tuple[Tensor, Carry]:
        seen = carry.get("seen", self.start)
        return h + seen[:, None, None], {**carry, "seen": seen + 1}


@dataclass(frozen=True, eq=False)
class Note(Probe):
    def read(self, h: Tensor, where: Where, carry: Carry) -> Carry:
        return {**carry, "noted": h[:, 0, 0]}


@dataclass(frozen=True, eq=False)
class AddNoted(Edit):
    def apply(self, h: Tensor, where: Where, carry: Carry) -> tuple[Tensor, Carry]:
        return h + carry["noted"][:, None, None], carry


def where(rows: int = 2, tokens: int = 3) -> Where:
    positions = torch.arange(tokens).expand(rows, -1)
    return Where(positions, None, torch.full((rows,), tokens), prefill=True)


def test_chain_and_sum_by_hand() -> None:
    h, vector = torch.ones(2, 3, 6), torch.full((2, 6), 3.0)
    parts = {"double": Double(), "add": Add(vector)}
    chained, _ = StackedEdit(parts, "chain").apply(h, where(), {})
    assert torch.equal(chained, torch.full_like(h, 2 * 1 + 3))
    turned, _ = StackedEdit(dict(reversed(parts.items())), "chain").apply(h, where(), {})
    assert torch.equal(turned, torch.full_like(h, 2 * (1 + 3)))
    summed, _ = StackedEdit(parts, "sum").apply(h, where(), {})
    assert torch.equal(summed, torch.full_like(h, 1 + 1 + 3))
    assert torch.equal(h, torch.ones(2, 3, 6))


def test_parts_carry_under_names_of_their_own() -> None:
    h = torch.zeros(2, 3, 6)
    stacked = StackedEdit({"one": Count(torch.zeros(2)), "ten": Count(torch.full((2,), 10.0))}, "chain")
    first, carry = stacked.apply(h, where(), {"other": torch.ones(2)})
    second, carry = stacked.apply(h, where(), carry)
    assert torch.equal(first, torch.full_like(h, 10.0))
    assert torch.equal(second, torch.full_like(h, 1 + 11.0))
    assert set(carry) == {"other", "one.seen", "ten.seen"}


@dataclass(frozen=True, kw_only=True)
class Noting(Method):
    """Probes at layer 1, adds at layer 2 what it noted there times nothing else."""

    strength: float | Range = 1.0

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: dict[str, Tensor]) -> Intervention:
        return Intervention({Site(2): AddNoted()}, {Site(1): Note()})


def test_a_probe_reaches_the_edits_of_its_own_part() -> None:
    stack = Stack(parts={"a": Noting(), "b": Noting()})
    made = stack.intervention({}, {}, {"a.strength": torch.ones(2), "b.strength": torch.ones(2)})
    h = torch.full((2, 3, 6), 5.0)
    carry = made.probes[Site(1)].read(h, where(), {})
    assert set(carry) == {"a.noted", "b.noted"}
    new, _ = made.edits[Site(2)].apply(h, where(), carry)
    assert torch.equal(new, torch.full_like(h, 15.0))


def test_a_part_alone_writes_its_own_tokens() -> None:
    single = Lab.of(job_for("caa"))
    stacked = Lab.of(job_for("stack", "~method.parts.second"))
    assert {name.removeprefix("first.") for name in stacked.bench.artifact} == set(single.bench.artifact)
    assert ids(stacked.decode(stacked.intervention())) == ids(single.decode(single.intervention()))


def test_two_vectors_at_one_layer_are_their_sum() -> None:
    lab = Lab.of(job_for("stack", "method@method.parts.second=caa"))
    twice = {"first.layer": 2.0, "second.layer": 2.0, "first.strength": 0.2, "second.strength": 0.3}
    once = {"first.layer": 2.0, "second.layer": 2.0, "first.strength": 0.5, "second.strength": 0.0}
    known = lab.job.method.parameters(lab.layout)
    h = torch.randn(1, 3, lab.layout.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def edited(values: dict[str, float]) -> Tensor:
        chosen = lab.job.method.defaults(lab.layout) | {name: values[name] for name in known if name in values}
        parameters = {name: torch.tensor([value], dtype=torch.float64) for name, value in chosen.items()}
        looked_up = lab.job.method.condition(lab.bench.subject, lab.bench.artifact, [lab.requests[0].example])
        made = lab.job.method.intervention(lab.bench.artifact, looked_up, parameters)
        (edit,) = made.edits.values()
        return edit.apply(h, where(1), {})[0]

    torch.testing.assert_close(edited(twice), edited(once))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["method@method.parts.second=baseline"], "parts.second must steer"),
        (["method.order=mean"], "method.order must be one of chain, sum"),
        (["method.parts.first.instruction=Be kind.", "method.parts.second.instruction=Be rude."], "different instruct"),
    ],
)
def test_wrong_stacks_are_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        job_of([*SMALL, "task=behaviors", "method=stack", *overrides])


def test_samples_that_steer_each_other_do_so_alone() -> None:
    parts = {"first": job_for("stars").method}
    with pytest.raises(ValueError, match=r"parts\.first steers samples of one prompt together"):
        Stack(parts=parts).check(LAYOUT)


def test_a_stack_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one method"):
        Stack(parts={}).check(LAYOUT)


def test_parts_decide_the_key() -> None:
    keys = {
        job_of([*SMALL, "task=behaviors", "method=stack", *more]).keys.generations
        for more in ([], ["method.order=sum"], ["method@method.parts.second=iti"], ["~method.parts.second"])
    }
    assert len(keys) == 4
