"""Fusion Steering: hand-worked shifts, the identities that its formula implies, and its references on a real model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.subject.local import LocalSubject, Template
from harness.subject.sampling import Sampling
from harness.subject.scorers import open_subject
from harness.types import Access, Example, Layout, Site, Where
from methods.fusion import FusionSteering, MeanShift, segment_names

LAYOUT = Layout(num_layers=4, width=32, num_heads=4, head_width=8)
SEGMENTS = {"early": (0.02, 0.5), "middle": (0.005, 0.08), "late": (0.005, 0.08)}


def whole_prompt(tokens: int, rows: int = 1) -> Where:
    return Where(torch.arange(tokens).expand(rows, -1), None, torch.full((rows,), tokens), prefill=True, site=Site(0))


@pytest.fixture(scope="module")
def subject(load_tiny: Callable) -> LocalSubject:
    return replace(open_subject(load_tiny("llama", chat_template=False)), template=Template(chat=False))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [Example("a", "Who wrote it?", "Ada"), Example("b", "Where is the river?", "in the far north")]


def test_shift_worked_by_hand() -> None:
    h = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])  # mean (2, 2)
    edit = MeanShift(torch.tensor([[4.0, 0.0]]), torch.tensor([0.5]))
    new, carry = edit.apply(h, whole_prompt(2), {})
    assert torch.equal(new, torch.tensor([[[2.0, -1.0], [4.0, 3.0]]]))  # + 0.5 * ((4, 0) - (2, 2)) = (1, -1)
    step = Where(torch.tensor([[2]]), None, torch.tensor([2]), prefill=False, site=Site(0))
    later, _ = edit.apply(torch.zeros(1, 1, 2), step, carry)
    assert torch.equal(later, torch.tensor([[[1.0, -1.0]]])), "later tokens get the prompt's shift"


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_mean_moves_by_the_strength(strength: float) -> None:
    h, reference = torch.randn(1, 5, 3, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    new, _ = MeanShift(reference, torch.tensor([strength], dtype=torch.float64)).apply(h, whole_prompt(5), {})
    torch.testing.assert_close(new.mean(1), (1 - strength) * h.mean(1) + strength * reference)
    torch.testing.assert_close(new[:, 1:] - new[:, :-1], h[:, 1:] - h[:, :-1], msg="differences between tokens stay")


def test_padding_counts_for_nothing() -> None:
    h = torch.tensor([[[9.0], [1.0], [3.0]]])
    real = torch.tensor([[False, True, True]])
    where = Where(torch.tensor([[0, 0, 1]]), real, torch.tensor([2]), prefill=True, site=Site(0))
    new, _ = MeanShift(torch.tensor([[4.0]]), torch.tensor([1.0])).apply(h, where, {})
    assert new.flatten().tolist() == [9.0, 3.0, 5.0]  # mean of the real ones is 2, the shift 2


def test_segments_cover_every_layer_once() -> None:
    assert segment_names(["early", "middle", "late"], 26) == ["early"] * 9 + ["middle"] * 9 + ["late"] * 8
    for layers in range(3, 40):
        names = segment_names(["early", "middle", "late"], layers)
        assert len(names) == layers
        assert names == sorted(names, key=["early", "middle", "late"].index)
        assert max(map(names.count, set(names))) - min(map(names.count, set(names))) <= 1


def test_only_the_product_of_alpha_and_gamma_acts() -> None:
    method = FusionSteering(segments={"all": (0.01, 1.0)}, parametrization="paper")
    condition = {"reference": torch.randn(3, 4, 32)}
    alpha, gamma = torch.tensor([0.5, 0.2, 1.0]), torch.tensor([0.4, 1.0, 0.2])
    edits = method.intervention({}, condition, {"alpha_all": alpha, "gamma_all": gamma}).edits
    product = FusionSteering(segments={"all": (0.01, 1.0)})
    expected = product.intervention({}, condition, {"k_all": torch.full((3,), 0.2)}).edits
    h = torch.randn(3, 6, 32)
    for site, edit in edits.items():
        where = whole_prompt(6, 3).at(site)
        torch.testing.assert_close(edit.apply(h, where, {})[0], expected[site].apply(h, where, {})[0])


def test_parameters_are_named_by_segment() -> None:
    assert set(FusionSteering(segments=SEGMENTS).parameters(LAYOUT)) == {"k_early", "k_middle", "k_late"}
    paper = FusionSteering(segments=SEGMENTS, parametrization="paper").parameters(LAYOUT)
    assert len(paper) == 6
    fixed = FusionSteering(segments={"early": 0.2, "late": (0.01, 0.04)})
    assert fixed.defaults(LAYOUT) == {"k_early": 0.2, "k_late": pytest.approx(0.02)}, "geometric middle of a log range"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": {str(i): (0.1, 0.2) for i in range(5)}}, "segments must number 1 to 4, got 5"),
        ({"segments": {"all": (0.0, 0.2)}}, "log range must start above 0"),
        ({"segments": {"all": (0.1, 0.2, 0.3)}}, "number or \\[low, high\\], got"),
        ({"mean": "running"}, "mean must be one of prompt, sequence"),
        ({"explanation_tokens": -1}, "explanation_tokens must be 0 or more, got -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusionSteering(**options).check(LAYOUT)


def test_it_says_that_it_sees_the_gold() -> None:
    assert FusionSteering.access == {Access.GOLD}


def test_reference_is_the_mean_over_the_answer_alone(subject: LocalSubject, examples: list[Example]) -> None:
    reference = FusionSteering(segments=SEGMENTS).condition(subject, {}, examples)["reference"]
    assert reference.shape == (2, subject.layout.num_layers, subject.layout.width)
    states = subject.capture(
        [e.question for e in examples], [e.answer for e in examples], [Site(2)], tokens="completion", pool="mean"
    )
    torch.testing.assert_close(reference[:, 2], states[Site(2)])


def test_explanation_joins_the_reference(subject: LocalSubject, examples: list[Example]) -> None:
    plain = FusionSteering(segments=SEGMENTS)
    explained = replace(plain, explanation_tokens=8)
    unmarked = replace(explained, explanation_marker="**Never written**")
    references = [method.condition(subject, {}, examples)["reference"] for method in (plain, explained, unmarked)]
    assert not torch.allclose(references[0], references[1])
    torch.testing.assert_close(references[0], references[2], msg="without its mark an explanation is left out")


def _texts(subject: LocalSubject, method: FusionSteering, examples: list[Example], strength: float) -> list[tuple]:
    condition = method.condition(subject, {}, examples)
    values: dict[str, Tensor] = {name: torch.full((2,), strength) for name in method.parameters(subject.layout)}
    prompts = [subject.encode(subject.render(example.question)) for example in examples]
    rows = subject.decode(prompts, method.intervention({}, condition, values), Sampling(12, ignore_stop=True))
    return [row.token_ids for row in rows]


@pytest.mark.parametrize("mean", ["prompt", "sequence"])
def test_rows_are_independent_of_their_batch(subject: LocalSubject, examples: list[Example], mean: str) -> None:
    method = FusionSteering(segments=SEGMENTS, mean=mean)  # pyright: ignore[reportArgumentType]
    together = _texts(subject, method, examples, 0.3)
    for index, example in enumerate(examples):
        assert _texts(subject, method, [example, example], 0.3)[0] == together[index]


def test_the_two_means_are_two_functions(subject: LocalSubject, examples: list[Example]) -> None:
    prompt, sequence = (FusionSteering(segments=SEGMENTS, mean=mean) for mean in ("prompt", "sequence"))
    assert _texts(subject, prompt, examples, 0.0) == _texts(subject, sequence, examples, 0.0)
    assert _texts(subject, prompt, examples, 0.5) != _texts(subject, sequence, examples, 0.5)
