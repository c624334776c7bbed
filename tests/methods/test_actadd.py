"""ActAdd: the sequence of differences, where it lands, and that it leaves the rest alone."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.types import FitData, Layout, Site, Where
from methods.actadd import ActAdd, AddSequence, prefixes

LAYOUT = Layout(num_layers=3, width=4, num_heads=2, head_width=2)


def last_word(prompt: str, completion: str, site: Site) -> Tensor:
    """A one-hot activation for the text's last word; a space reads as the fourth."""
    word = completion.split(" ")[-1]
    return (site.layer + 1) * torch.eye(4)[{"warm": 0, "sun": 1, "cold": 2, "": 3}[word]]


def test_prefixes_pad_the_shorter_text_with_spaces() -> None:
    assert prefixes("I love weddings", 3) == ["I", "I love", "I love weddings"]
    assert prefixes("Hate", 3) == ["Hate", "Hate ", "Hate  "]


def test_planted_difference_is_found_word_by_word(synthetic_subject: type) -> None:
    subject = synthetic_subject(LAYOUT, last_word)
    artifact = ActAdd(positive="warm sun", negative="cold").fit(subject, FitData())
    assert artifact["vector"].shape == (3, 2, 4)
    for layer in range(3):
        scale = (layer + 1) / 2**0.5
        expected = scale * torch.tensor([[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0]])
        assert torch.allclose(artifact["vector"][layer], expected)
    assert all(request["raw"] for request in subject.requests)
    assert {(request["tokens"], request["pool"]) for request in subject.requests} == {("completion", "last")}


def test_edit_by_hand_under_left_padding_with_an_offset() -> None:
    edit = AddSequence(strength=torch.tensor([1.0, 10.0]), vectors=torch.tensor([[1.0], [2.0]]), offset=1)
    positions = torch.tensor([[0, 1, 2, 3, 4], [-2, -1, 0, 1, 2]])
    where = Where(positions, positions >= 0, torch.tensor([5, 2]), True)
    edited, _ = edit.apply(torch.zeros(2, 5, 1), where, {})
    assert edited[..., 0].tolist() == [[0.0, 1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 10.0, 0.0]]


def test_decoding_is_left_alone(apply_edits: Callable) -> None:
    artifact = {"vector": torch.ones(3, 2, 4)}
    parameters = {"layer": torch.tensor([1.0]), "strength": torch.tensor([1.0])}
    intervention = ActAdd(offset=0).intervention(artifact, {}, parameters)
    h = torch.randn(1, 1, 4)
    assert torch.equal(apply_edits(intervention, h, Site(1, "block_input"), start=1, prompt=1), h)
    assert not torch.equal(apply_edits(intervention, h, Site(1, "block_input"), prompt=1), h)


def test_rows_may_have_their_own_layer_and_null_is_the_identity(edit_laws: Callable, apply_edits: Callable) -> None:
    method = ActAdd(offset=1)
    artifact = {"vector": torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))}
    parameters = {"layer": torch.tensor([0.0, 2.0, 2.0]), "strength": torch.tensor([1.0, 2.0, -1.0])}
    intervention = method.intervention(artifact, {}, parameters)
    assert intervention.edits[Site(0, "block_input")].strength.tolist() == [1.0, 0.0, 0.0]
    assert intervention.edits[Site(2, "block_input")].strength.tolist() == [0.0, 2.0, -1.0]
    edit_laws(intervention, LAYOUT)
    null = {name: torch.tensor([value]) for name, value in method.null(LAYOUT).items()}
    h = torch.randn(1, 4, 4)
    for site in method.intervention(artifact, {}, null).edits:
        assert torch.equal(apply_edits(method.intervention(artifact, {}, null), h, site), h)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 3}, "layer must be a whole number from 0 to 2, got 3"),
        ({"offset": -1}, "offset must not be negative, got -1"),
        ({"positive": "Hate"}, "positive and negative must be two texts"),
        ({"negative": " "}, "positive and negative must be two texts"),
    ],
)
def test_wrong_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ActAdd(), **changes).check(LAYOUT)
