"""A training begins its passes at the first edit: same values and gradients, nothing before it is computed again."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from engine_parts import one_thread  # noqa: F401
from torch import Tensor

from harness.directions import AddVector
from harness.laws.lab import lab_for, workbench_of
from harness.subject import kept as kept_states
from harness.subject.hooks import skipped
from harness.subject.kept import TextStates
from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject
from harness.subject.scorers import open_subject
from harness.subject.tally import Tally
from harness.types import Intervention, Site

PROMPTS, REPLIES = ["what is it", "one two three four", "why"], [" a b", " c", " d e f"]


def subject_of(family: str = "llama") -> LocalSubject:
    config = ModelConfig(kind="tiny", family=family, dtype="float64", chat_template=False)
    return dataclasses.replace(open_subject(load_model(config)), tally=Tally())


@pytest.fixture
def subject() -> LocalSubject:
    return subject_of()


def added(subject: LocalSubject, vectors: Tensor, *sites: Site) -> Intervention:
    return Intervention({site: AddVector(vector=vectors, tokens="all") for site in sites})


def vectors_for(subject: LocalSubject, rows: int = 3) -> Tensor:
    vectors = torch.linspace(-1, 1, rows * subject.layout.width, dtype=torch.float64)
    return vectors.reshape(rows, -1).requires_grad_()


def loss_and_slope(subject: LocalSubject, site: Site, kept: TextStates | None, **options: Any) -> tuple[Tensor, Tensor]:
    vectors = vectors_for(subject)
    with torch.enable_grad():
        passed = subject.forward(PROMPTS, REPLIES, intervention=added(subject, vectors, site), kept=kept, **options)
        loss = passed.logprobs().square().sum()
        loss.backward()
    assert vectors.grad is not None
    return loss.detach(), vectors.grad


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("site", [Site(2), Site(2, "block_input"), Site(3, "mlp")], ids=str)
def test_a_pass_from_what_is_kept_has_the_same_values_and_gradients(family: str, site: Site) -> None:
    subject = subject_of(family)
    kept = subject.keep(PROMPTS, REPLIES, added(subject, vectors_for(subject), site))
    assert kept is not None
    assert kept.depth == site.layer + (site.stream == "block")
    for got, expected in zip(loss_and_slope(subject, site, kept), loss_and_slope(subject, site, None), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_blocks_before_the_edit_run_once(subject: LocalSubject) -> None:
    site, layers = Site(2), subject.layout.num_layers
    runs = [0] * layers
    for layer in range(layers):
        attention, _ = subject.network.blocks.module(Site(layer, "attention"))

        def count(*_args: Any, layer: int = layer) -> None:
            runs[layer] += 1

        attention.register_forward_pre_hook(count)

    kept = subject.keep(PROMPTS, REPLIES, added(subject, vectors_for(subject), site))
    assert runs == [1, 1, 1] + [0] * (layers - 3)
    fed = subject.tally.forward_tokens
    for _ in range(2):
        loss_and_slope(subject, site, kept)
    assert runs == [1, 1, 1] + [2] * (layers - 3)

    whole = dataclasses.replace(subject, tally=Tally())
    loss_and_slope(whole, site, None)
    assert fed == pytest.approx(whole.tally.forward_tokens * 3 / layers, abs=1)
    in_passes = subject.tally.forward_tokens - fed
    assert in_passes == pytest.approx(2 * whole.tally.forward_tokens * (layers - 3) / layers, abs=2)


@pytest.mark.parametrize(
    ("acts_at", "reads_at", "texts"),
    [(Site(1), (), PROMPTS), (Site(2), (Site(0),), PROMPTS), (Site(2), (), ["who else", *PROMPTS[1:]])],
    ids=["an earlier edit", "an earlier state", "another text"],
)
def test_a_pass_that_needs_more_than_is_kept_begins_at_the_start(
    subject: LocalSubject, acts_at: Site, reads_at: tuple[Site, ...], texts: list[str]
) -> None:
    vectors = vectors_for(subject)
    kept = subject.keep(PROMPTS, REPLIES, added(subject, vectors, Site(2)))
    steering = added(subject, vectors, acts_at)
    with torch.no_grad():
        ours = subject.forward(texts, REPLIES, sites=reads_at, intervention=steering, kept=kept)
        plain = subject.forward(texts, REPLIES, sites=reads_at, intervention=steering)
    assert torch.equal(ours.logprobs(), plain.logprobs())
    assert all(torch.equal(ours.states[site], plain.states[site]) for site in reads_at)


def test_nothing_is_kept_where_little_would_be_saved(subject: LocalSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = vectors_for(subject)
    assert subject.keep(PROMPTS, REPLIES, Intervention()) is None
    assert subject.keep(PROMPTS, REPLIES, added(subject, vectors, Site(0, "block_input"), Site(3))) is None
    assert subject.keep(PROMPTS, REPLIES, added(subject, vectors, Site(3))) is not None
    fed = subject.tally.forward_tokens
    monkeypatch.setattr(kept_states, "_MOST_BYTES", 1000)
    assert subject.keep(PROMPTS, REPLIES, added(subject, vectors, Site(3))) is None
    assert subject.tally.forward_tokens == fed > 0, "what is too large must be known before it is computed"


def test_padding_holds_no_zeros_that_an_edits_gradient_would_trip_over(subject: LocalSubject) -> None:
    kept = subject.keep(PROMPTS, REPLIES, added(subject, vectors_for(subject), Site(2)))
    with torch.no_grad():
        passed = subject.forward(
            PROMPTS, REPLIES, sites=[Site(2)], intervention=added(subject, vectors_for(subject), Site(2)), kept=kept
        )
    padding = passed.states[Site(2)][~passed.real]
    assert len(padding) > 0
    assert bool((padding.norm(dim=-1) > 0.1).all())


def longer(method: Any, epochs: int) -> Any:
    return dataclasses.replace(method, training=dataclasses.replace(method.training, epochs=epochs))


@pytest.mark.parametrize("method", ["reft_r1", "ssv", "loreft", "reps", "cdas", "lm_steer", "flas", "hypersteer"])
def test_what_is_learnt_is_the_same(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = lab_for(method)
    job = dataclasses.replace(lab.job, method=longer(lab.job.method, 3))
    served: list[bool] = []
    serve = TextStates.serve

    def noted(self: TextStates, *arguments: Any) -> bool:
        served.append(serve(self, *arguments))
        return served[-1]

    monkeypatch.setattr(TextStates, "serve", noted)
    with_kept = workbench_of(job).fit()
    assert served, "nothing was kept, so nothing is tested"
    assert all(served), "a pass read other texts than the learner says"

    monkeypatch.setattr(LocalSubject, "keep", lambda *_args, **_options: None)
    without = workbench_of(job).fit()
    for name, value in without.items():
        torch.testing.assert_close(with_kept[name], value, rtol=1e-5, atol=1e-8)


def test_a_single_epoch_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = lab_for("ssv")
    asked: list[int] = []
    monkeypatch.setattr(LocalSubject, "keep", lambda *_args, **_options: asked.append(1))
    workbench_of(dataclasses.replace(lab.job, method=longer(lab.job.method, 1))).fit()
    assert not asked
    workbench_of(dataclasses.replace(lab.job, method=longer(lab.job.method, 2))).fit()
    assert asked == [1]


def test_a_block_gets_the_forward_back_that_it_had(subject: LocalSubject) -> None:
    """Offloaded blocks have one of their own."""
    block, _ = subject.network.blocks.module(Site(0))
    other, _ = subject.network.blocks.module(Site(1))
    own = block.forward
    block.forward = own
    with skipped([block, other], torch.zeros(1), in_tuple=True):
        assert block(3) == (torch.zeros(1),)
        assert block.forward != own
    assert vars(block)["forward"] == own
    assert "forward" not in vars(other)
