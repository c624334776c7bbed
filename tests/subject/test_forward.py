"""The pass with gradients: values, slopes, states, and what edits hand out."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from engine_parts import one_thread  # noqa: F401
from torch import Tensor
from torch.nn import functional

from harness.subject import forward as forward_module
from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject
from harness.subject.logprobs import token_logprobs
from harness.subject.scorers import open_subject
from harness.types import Carry, Edit, Intervention, Site, Where

PROMPTS, COMPLETIONS = ["one", "a longer prompt", "two words"], [" two three", " x", " and so on"]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def subject(request: pytest.FixtureRequest) -> LocalSubject:
    """A plain family, and one that caps its logits."""
    return open_subject(load_model(ModelConfig(kind="tiny", family=request.param, device="cpu", dtype="float64")))


@dataclass(frozen=True, eq=False)
class Shift(Edit):
    """``h + vector``, and the size of the state as a side loss."""

    vector: Tensor

    def apply(self, h: Tensor, where: Where, carry: Carry) -> tuple[Tensor, Carry]:
        new = where.keep(h + self.vector[:, None], h)
        return new, {**carry, where.key("size"): where.mean(new.square()).sum(-1)}


def shifted(vector: Tensor) -> Intervention:
    return Intervention({Site(1): Shift(vector.expand(len(PROMPTS), -1))})


def test_log_probabilities_are_those_of_scoring(subject: LocalSubject) -> None:
    vector = torch.linspace(-1, 1, subject.layout.width, dtype=torch.float64)
    for intervention in (None, shifted(vector)):
        passed = subject.forward(PROMPTS, COMPLETIONS, intervention=intervention)
        scored = subject.loglikelihood(PROMPTS, COMPLETIONS, intervention=intervention)
        for row, expected in enumerate(scored):
            torch.testing.assert_close(passed.logprobs()[row][passed.completion[row]], expected)
        assert not passed.logprobs()[~passed.completion].any()


def test_masks_and_ids_describe_the_texts(subject: LocalSubject) -> None:
    passed = subject.forward(PROMPTS, COMPLETIONS)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        head, tail = subject.encode(subject.render(prompt)), subject.encode(completion)
        assert tuple(passed.ids[row][passed.real[row]].tolist()) == head + tail
        assert tuple(passed.ids[row][passed.completion[row]].tolist()) == tail
        assert passed.predicting[row].nonzero().flatten().tolist() == [len(head) - 1 + i for i in range(len(tail))]
    counts = subject.token_counts(PROMPTS, COMPLETIONS)
    assert [count.total for count in counts] == passed.real.sum(1).tolist()
    assert [count.completion for count in counts] == passed.completion.sum(1).tolist()


def test_all_tokens_sum_to_the_language_model_loss(subject: LocalSubject) -> None:
    passed = subject.forward(PROMPTS, COMPLETIONS)
    logits = passed.logits(passed.real).split(passed.real.sum(1).tolist())
    for row, here in enumerate(logits):
        ids = passed.ids[row][passed.real[row]]
        expected = -functional.cross_entropy(here[:-1], ids[1:], reduction="none")
        torch.testing.assert_close(passed.logprobs("all")[row][passed.real[row]][1:], expected)


def test_gradients_are_those_of_whole_logits(subject: LocalSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_module, "logit_rows", lambda _device: 3)  # several pieces, the last one short
    slopes = []
    for whole in (False, True):
        vector = torch.linspace(-1, 1, subject.layout.width, dtype=torch.float64).requires_grad_()
        passed = subject.forward(PROMPTS, COMPLETIONS, intervention=shifted(vector))
        weight = torch.linspace(0.5, 2, passed.ids.numel(), dtype=torch.float64).view_as(passed.ids)
        if whole:
            logprobs = passed.logits(passed.predicting).log_softmax(-1)
            values = logprobs.gather(1, passed.ids[passed.completion][:, None])[:, 0]
            loss = (values * weight[passed.completion]).sum()
        else:
            loss = (passed.logprobs() * weight).sum()
        loss.backward()
        slopes.append(vector.grad)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-10, atol=1e-12)


def test_the_gradient_of_the_pieces_passes_a_numerical_check() -> None:
    weight = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    targets = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda x: token_logprobs(lambda y: torch.tanh(y @ weight.T), 2, x, targets), (h,))


def test_logits_come_in_pieces_too(subject: LocalSubject) -> None:
    passed = subject.forward(PROMPTS, COMPLETIONS)
    pieces = list(passed.logit_pieces(passed.predicting, 4))
    assert [len(piece) for piece in pieces[:-1]] == [4] * (len(pieces) - 1)
    torch.testing.assert_close(torch.cat(pieces), passed.logits(passed.predicting))


def test_states_keep_their_graph_and_are_read_after_the_edit(subject: LocalSubject) -> None:
    vector = torch.zeros(subject.layout.width, dtype=torch.float64, requires_grad=True)
    sites = [Site(0), Site(1), Site(2)]
    passed = subject.forward(PROMPTS, COMPLETIONS, sites=sites, intervention=shifted(vector))
    assert not passed.states[Site(0)].requires_grad, "nothing was steered before"
    (slope,) = torch.autograd.grad(passed.states[Site(1)][passed.real].sum(), vector, retain_graph=True)
    assert torch.equal(slope, torch.full_like(slope, int(passed.real.sum())))
    (slope,) = torch.autograd.grad(passed.states[Site(2)][passed.real].square().sum(), vector)
    assert slope.abs().min() > 0


def test_an_edit_hands_out_a_side_loss_through_the_carry(subject: LocalSubject) -> None:
    vector = torch.linspace(-1, 1, subject.layout.width, dtype=torch.float64).requires_grad_()
    passed = subject.forward(PROMPTS, COMPLETIONS, sites=[Site(1)], intervention=shifted(vector))
    size = passed.carry["1.block/size"]
    states = [h[real] for h, real in zip(passed.states[Site(1)], passed.real, strict=True)]
    torch.testing.assert_close(size, torch.stack([h.square().mean(0).sum() for h in states]))
    (slope,) = torch.autograd.grad(size.sum(), vector)
    torch.testing.assert_close(slope, torch.stack([2 * h.mean(0) for h in states]).sum(0))


def test_a_pass_without_logits_ends_behind_the_last_site(
    subject: LocalSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for layer, block in enumerate(subject.network.blocks.modules):
        original = block.forward
        monkeypatch.setattr(block, "forward", lambda *a, f=original, n=layer, **k: runs.append(n) or f(*a, **k))
    passed = subject.forward(PROMPTS, COMPLETIONS, sites=[Site(1), Site(0)], logits=False)
    assert runs == [0, 1]
    assert set(passed.states) == {Site(0), Site(1)}
    with pytest.raises(ValueError, match="ask for logits=True"):
        passed.logprobs()


def test_nothing_is_kept_for_the_way_back_without_gradients(subject: LocalSubject) -> None:
    vector = torch.zeros(subject.layout.width, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        passed = subject.forward(PROMPTS, COMPLETIONS, sites=[Site(3)], intervention=shifted(vector))
        assert not passed.logprobs().requires_grad
        assert not passed.states[Site(3)].requires_grad


def test_prompts_begin_alike_as_far_as_the_prefix_goes(subject: LocalSubject) -> None:
    ids = [subject.encode(subject.render(question)) for question in ("why", "Z?", "")]
    length = subject.prefix_length
    assert len({row[:length] for row in ids}) == 1
    assert len({row[: length + 1] for row in ids}) == 3
    assert subject.prefix_length == len(subject.encode("<bos><user>"))
