"""Post-block adapters: the edit by hand, a concept that they learn to write, groups, refusals."""

import pytest
import torch
from learning import likelihood, prompts_alone, shown

from harness.low_rank import Bottleneck
from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject
from harness.subject.scorers import open_subject
from harness.training import Training
from harness.types import FitData, Layout
from methods.adapter import PostBlockAdapter

SHORT = Training(epochs=8, batch_size=8, learning_rate=0.02)


@pytest.fixture(scope="module")
def tiny() -> LocalSubject:
    return open_subject(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")))


def test_the_edit_by_hand() -> None:
    # Inside: h1 - 1 and -h2; only what is above 0 comes out, along e1 and e2, and half of it is added.
    down, up = torch.tensor([[[1.0, 0.0], [0.0, -1.0]]]), torch.eye(2)[None]
    h, real = torch.tensor([[[4.0, 2.0], [0.0, -6.0], [4.0, 4.0]]]), torch.tensor([[True, True, False]])
    where, strength = prompts_alone(h.shape[:2], real), torch.tensor([0.5])
    edited, _ = Bottleneck(down, torch.tensor([[-1.0, 0.0]]), up, strength, "relu").apply(h, where, {})
    assert edited[0].tolist() == [[5.5, 2.0], [0.0, -3.0], [4.0, 4.0]]
    linear, _ = Bottleneck(down, torch.zeros(1, 2), up, strength).apply(h, where, {})
    assert linear[0].tolist() == [[6.0, 1.0], [0.0, -3.0], [4.0, 4.0]]


def test_each_group_learns_to_write_its_own_texts(tiny: LocalSubject) -> None:
    both = shown("a", "z") + shown("b", "q")
    method = PostBlockAdapter(rank=2, training=SHORT)
    artifact = method.fit(tiny, FitData(demonstrations=tuple(both)))
    assert artifact["layers"].tolist() == list(range(tiny.layout.num_layers))
    for number, letter in enumerate("zq"):
        own = likelihood(tiny, method, artifact, letter, 1.0, number)
        assert own > likelihood(tiny, method, artifact, letter, 0.0) + 2.0
        assert own > likelihood(tiny, method, artifact, letter, 1.0, 1 - number) + 1.0

    positives = tuple(text for text in both if text.wanted and text.group == "b")
    alone = method.fit(tiny, FitData(demonstrations=positives))
    torch.testing.assert_close(alone["up"][0], artifact["up"][1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (1, 4)}, "layers must be a whole number from 0 to 3, got 4"),
        ({"rank": 0}, "rank must be from 1 to 8, got 0"),
        ({"activation": "gelu"}, "activation must be one of relu, linear, got 'gelu'"),
    ],
)
def test_wrong_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PostBlockAdapter(**changes).check(Layout(num_layers=4, width=8, num_heads=1, head_width=8))


def test_no_wanted_texts_are_refused(tiny: LocalSubject) -> None:
    with pytest.raises(ValueError, match="no texts to learn from"):
        PostBlockAdapter().fit(tiny, FitData(demonstrations=tuple(shown("", "z")[8:])))
