"""Faults that leave a model un-steered: each one must end as an error, never as a result."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from harness.control import Control, RandomDirection, Shuffled
from harness.receipt import NotSteeredError, prove
from harness.records.run import Receipt
from harness.subject.load import Loaded
from harness.subject.local import LocalSubject
from harness.subject.passes import next_token_logprobs
from harness.subject.scorers import open_subject
from harness.subject.sites import Blocks
from harness.tasks.facts import Facts
from harness.types import Artifact, Carry, Edit, Intervention, Layout, Method, Parameters, Range, Site, Tokens, Where
from harness.workbench import Request, Workbench


@dataclass(frozen=True, eq=False)
class Add(Edit):
    """Adds a strength to every dimension of the chosen tokens."""

    strength: Tensor
    tokens: Tokens

    def apply(self, h: Tensor, where: Where, carry: Carry) -> tuple[Tensor, Carry]:
        return where.keep(h + self.strength[:, None, None].to(h.dtype), h, self.tokens), carry


@dataclass(frozen=True, kw_only=True)
class Push(Method):
    """Pushes two layers."""

    strength: float | Range = 0.5
    tokens: Tokens = "all"

    can_be_off: bool = False

    def null(self, layout: Layout) -> Parameters | None:
        return {"strength": 0.0} if self.can_be_off else None

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        return Intervention({Site(layer): Add(parameters["strength"], self.tokens) for layer in (1, 2)})


@pytest.fixture
def subject(load_tiny: Callable[..., Loaded]) -> LocalSubject:
    return open_subject(load_tiny())


def receipt_of(
    subject: LocalSubject,
    strength: float = 0.5,
    tokens: Tokens = "all",
    can_be_off: bool = False,
    control: Control | None = None,
) -> Receipt:
    task = Facts(limit=3, max_new_tokens=4)
    bench = Workbench(subject, task, Push(tokens=tokens, can_be_off=can_be_off), control or Control(), 0)
    requests = [Request(example, {"strength": strength}) for example in task.examples("test")]
    return prove(bench, requests, [(70, 71, 72)] * 3, "push")


def with_hooks_on(subject: LocalSubject, modules: tuple[torch.nn.Module, ...]) -> LocalSubject:
    blocks = Blocks(modules, subject.network.blocks.family)
    return dataclasses.replace(subject, network=dataclasses.replace(subject.network, blocks=blocks))


def test_a_steered_model_passes_and_the_figures_are_right(subject: LocalSubject) -> None:
    receipt = receipt_of(subject)
    prompts = [len(subject.encode(subject.render(e.question))) for e in Facts(limit=3).examples("test")]
    assert set(receipt.sites) == {"1.block", "2.block"}
    assert (receipt.rows, receipt.sites_hit, receipt.sites_missed) == (3, 2, ())
    assert receipt.sites["1.block"].tokens_prompt == sum(prompts)
    assert receipt.sites["1.block"].tokens_completion == 9
    assert 0 < receipt.kl_mean <= receipt.kl_max


def test_branching_is_the_exponential_of_the_entropy(subject: LocalSubject) -> None:
    found, tally = receipt_of(subject), subject.tally
    prompts = [subject.encode(subject.render(e.question)) for e in Facts(limit=3).examples("test")]
    plain = next_token_logprobs(subject.network, prompts, Intervention(), tally)
    by_torch = torch.distributions.Categorical(logits=plain).entropy().exp().mean()
    assert found.branching_unsteered == pytest.approx(float(by_torch), rel=1e-5)
    assert found.branching != pytest.approx(found.branching_unsteered, rel=1e-5)


def test_the_relative_change_is_the_mean_over_edited_tokens(subject: LocalSubject) -> None:
    before: list[Tensor] = []
    block = subject.network.blocks.modules[1]
    handle = block.register_forward_hook(lambda module, args, output: before.append(output))
    try:
        receipt = receipt_of(subject, tokens="completion")
    finally:
        handle.remove()

    states = before[0] if isinstance(before[0], Tensor) else before[0][0]
    lengths = [len(subject.encode(subject.render(e.question))) for e in Facts(limit=3).examples("test")]
    moved = torch.full((states.shape[-1],), 0.5).norm()
    shares = [moved / states[row, length : length + 3].float().norm(dim=-1) for row, length in enumerate(lengths)]

    site = receipt.sites["1.block"]
    assert (site.tokens_prompt, site.tokens_completion) == (0, 9)
    assert site.relative_change == pytest.approx(float(torch.cat(shares).mean()), rel=1e-4)
    assert receipt.kl_max == 0, "completion tokens come after the prompt's end"


def test_a_zero_vector_is_an_error(subject: LocalSubject) -> None:
    with pytest.raises(NotSteeredError, match="method push did not change any hidden state"):
        receipt_of(subject, strength=0.0)


def test_a_shuffled_control_may_find_nothing_to_do(subject: LocalSubject) -> None:
    """As a gate that learnt from shuffled labels never to open; one that does something is as any other."""
    assert receipt_of(subject, strength=0.0, control=Shuffled()).idle
    assert not receipt_of(subject, strength=0.5, control=Shuffled()).idle
    with pytest.raises(NotSteeredError, match="did not change any hidden state"):
        receipt_of(subject, strength=0.0, control=RandomDirection())


def test_the_point_at_which_a_method_is_off_needs_no_proof(subject: LocalSubject) -> None:
    off = receipt_of(subject, strength=0.0, can_be_off=True)
    assert (off.null, off.sites_hit, off.kl_max) == (True, 0, 0.0)
    assert not receipt_of(subject, strength=0.5, can_be_off=True).null


def test_hooks_on_modules_that_the_model_does_not_use_are_an_error(subject: LocalSubject) -> None:
    copies = tuple(copy.deepcopy(module) for module in subject.network.blocks.modules)
    with pytest.raises(NotSteeredError, match=r"never passes through \(1\.block, 2\.block\)"):
        receipt_of(with_hooks_on(subject, copies))


def test_one_bypassed_layer_is_an_error(load_tiny: Callable[..., Loaded]) -> None:
    """As a kernel that computes a quantised layer without calling it would: its hooks never fire."""
    subject = open_subject(load_tiny())
    layer = subject.network.blocks.modules[2]

    class Fused(torch.nn.Module):
        def forward(self, *arguments: object, **options: object) -> object:
            return layer.forward(*arguments, **options)

    fused = Fused()
    for name in ("attention_type", "layer_type"):
        if hasattr(layer, name):
            setattr(fused, name, getattr(layer, name))
    subject.network.model.base_model.layers[2] = fused
    with pytest.raises(NotSteeredError, match=r"never passes through \(2\.block\)"):
        receipt_of(subject)


def test_states_that_are_not_numbers_are_an_error(subject: LocalSubject) -> None:
    with pytest.raises(NotSteeredError, match="not numbers"):
        receipt_of(subject, strength=float("inf"))
