"""The supervised steering vector: a concept that it learns to write, its scales, and the authors' values."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from learning import likelihood, prompts_alone, shown, train_in_order

from harness.concepts import AddBehindPrefix
from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject
from harness.subject.scorers import open_subject
from harness.training import Training
from harness.types import FitData, Layout, Site
from methods.ssv import ShiftLearner, SupervisedVector

Arrays = Mapping[str, np.ndarray]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SHORT = Training(epochs=6, batch_size=4, learning_rate=0.05)


@pytest.fixture(scope="module")
def tiny() -> LocalSubject:
    return open_subject(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")))


def test_the_edit_in_training_leaves_prefix_and_padding_alone() -> None:
    h, real = torch.zeros(1, 4, 2), torch.tensor([[True, True, True, False]])
    edited, _ = AddBehindPrefix(torch.tensor([[1.0, 2.0]]), 1).apply(h, prompts_alone(h.shape[:2], real), {})
    assert edited[0].tolist() == [[0, 0], [1, 2], [1, 2], [0, 0]]


def test_each_group_learns_to_write_its_own_texts_from_wanted_ones_alone(tiny: LocalSubject) -> None:
    both, method = shown("a", "z") + shown("b", "q"), SupervisedVector(layer=2, training=SHORT)
    artifact = method.fit(tiny, FitData(demonstrations=tuple(both)))
    assert artifact["peak"].tolist() == [1.0, 1.0]
    for number, letter in enumerate("zq"):
        own = likelihood(tiny, method, artifact, letter, 1.0, number)
        assert own > likelihood(tiny, method, artifact, letter, 0.0) + 1.0
        assert own > likelihood(tiny, method, artifact, letter, 1.0, 1 - number) + 0.2

    positives = FitData(demonstrations=tuple(text for text in both if text.wanted and text.group == "b"))
    torch.testing.assert_close(method.fit(tiny, positives)["vector"][0], artifact["vector"][1], rtol=1e-4, atol=1e-5)


def test_axbenchs_scale_multiplies_by_the_largest_latent(tiny: LocalSubject) -> None:
    data, short = FitData(demonstrations=tuple(shown("", "z"))), Training(batch_size=8, learning_rate=0.05)
    method = SupervisedVector(layer=1, scale="peak", training=short)
    artifact = method.fit(tiny, data)
    positives = [(text.prompt, text.completion) for text in data.demonstrations if text.wanted]
    latents = method.latents(tiny, artifact, positives, [""] * len(positives))
    assert latents is not None
    assert artifact["peak"][0] == (latents.max() if latents.max() > 0 else 50.0)
    (edit,) = method.intervention(
        artifact, {"group": torch.tensor([0])}, {"strength": torch.tensor([2.0])}
    ).edits.values()
    torch.testing.assert_close(edit.vector, 2 * artifact["peak"] * artifact["vector"])  # pyright: ignore


def test_training_agrees_with_the_authors(trained_subject: LocalSubject, trained_texts: list, trained: Arrays) -> None:
    learner = Recorded(trained_subject, trained_texts, Site(int(trained["train_layer"])))
    steps = [[rows] for rows in trained["train_order"].tolist()]
    history = train_in_order(learner, steps, learning_rate=float(trained["train_lr"]))
    assert history.losses == pytest.approx(trained["ssv_lm_loss"].tolist(), rel=1e-5)
    torch.testing.assert_close(torch.stack(learner.after), torch.from_numpy(trained["ssv_w_after_step"]), **CLOSE)


class Recorded(ShiftLearner):
    """Notes the vector after every step."""

    def after_step(self) -> None:
        self.after = [*getattr(self, "after", []), self.v[0].clone()]


def test_the_edit_in_training_agrees_with_the_authors(trained: Arrays) -> None:
    base, vector = torch.from_numpy(trained["base"]), torch.from_numpy(trained["V"])[torch.from_numpy(trained["idx"])]
    edited, _ = AddBehindPrefix(vector).apply(base, prompts_alone(base.shape[:2]), {})
    torch.testing.assert_close(edited, torch.from_numpy(trained["y_ssv"]), **CLOSE)
    latents = torch.einsum("btd,bd->bt", base, vector)
    torch.testing.assert_close(latents.relu(), torch.from_numpy(trained["latent_ssv"]).relu(), **CLOSE)


def test_wrong_settings_are_refused() -> None:
    layout = Layout(num_layers=4, width=8, num_heads=1, head_width=8)
    with pytest.raises(ValueError, match="layer must be a whole number from 0 to 3, got 4"):
        SupervisedVector(layer=4).check(layout)
    with pytest.raises(ValueError, match="scale must be one of trained, peak, got 'unit'"):
        SupervisedVector(scale="unit").check(layout)  # pyright: ignore[reportArgumentType]


def test_no_wanted_texts_are_refused(tiny: LocalSubject) -> None:
    plain = tuple(text for text in shown("", "z") if not text.wanted)
    with pytest.raises(ValueError, match="no texts to learn from"):
        SupervisedVector().fit(tiny, FitData(demonstrations=plain))
