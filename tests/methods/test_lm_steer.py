"""LM-Steer: a map learnt from both kinds of texts steers either way, each group its own; equal to other embeddings."""

import pytest
import torch
from learning import likelihood, shown

from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject
from harness.subject.scorers import open_subject
from harness.training import Training
from harness.types import FitData, Layout, Site
from methods.lm_steer import LMSteer

SHORT = Training(epochs=10, batch_size=8, learning_rate=0.02)


@pytest.fixture(scope="module")
def tiny() -> LocalSubject:
    return open_subject(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")))


def test_each_group_steers_towards_its_texts_and_away_with_the_sign_turned(tiny: LocalSubject) -> None:
    both, method = shown("a", "z") + shown("b", "q"), LMSteer(rank=8, training=SHORT)
    artifact = method.fit(tiny, FitData(demonstrations=tuple(both)))
    for number, letter in enumerate("zq"):
        towards, away = (likelihood(tiny, method, artifact, letter, sign, number) for sign in (1.0, -1.0))
        nothing = likelihood(tiny, method, artifact, letter, 0.0)
        assert towards > nothing + 1.0
        assert away < nothing - 0.5
        assert towards > likelihood(tiny, method, artifact, letter, 1.0, 1 - number) + 0.5

    own = tuple(text for text in both if text.group == "b")
    alone = method.fit(tiny, FitData(demonstrations=own))
    torch.testing.assert_close(alone["up"][0], artifact["up"][1], rtol=1e-3, atol=1e-4)


def test_the_map_is_linear_in_the_last_state(tiny: LocalSubject) -> None:
    method = LMSteer(rank=8, training=Training(batch_size=8, learning_rate=0.05))
    artifact = method.fit(tiny, FitData(demonstrations=tuple(shown("", "z"))))
    steered = method.intervention(artifact, {"group": torch.tensor([0])}, {"strength": torch.tensor([0.7])})
    last = Site(tiny.layout.num_layers - 1)
    plain, moved = (tiny.capture(["say"], None, [last], intervention=i, pool="last")[last] for i in (None, steered))
    matrix = torch.eye(tiny.layout.width) + 0.7 * artifact["up"][0] @ artifact["down"][0]
    torch.testing.assert_close(moved, plain @ matrix.mT, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(moved, plain, atol=1e-3)


def test_wrong_settings_are_refused(tiny: LocalSubject) -> None:
    with pytest.raises(ValueError, match="rank must be from 1 to 8, got 9"):
        LMSteer(rank=9).check(Layout(num_layers=4, width=8, num_heads=1, head_width=8))
    with pytest.raises(ValueError, match="no texts to learn from"):
        LMSteer().fit(tiny, FitData())
