"""GrAInS: attribution against finite differences, replacement and turning by hand, and the authors' values."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from learning import prompts_alone
from tinylm import tinylm_subject, words
from torch import Tensor

from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject
from harness.subject.scorers import open_subject
from harness.types import FitData, Intervention, Layout, Pair, Site
from methods.grains import EMBEDDINGS, GrAInS, Replace, ScaledLeaf, Turn, foremost

Arrays = Mapping[str, np.ndarray]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
AS_RELEASED = "last_token_after_itself_as_released"


@pytest.fixture(scope="module")
def tiny() -> LocalSubject:
    return open_subject(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")))


@pytest.fixture
def arrays(golden: Callable[[str], Arrays]) -> Arrays:
    return golden("grains")


def texts_of(arrays: Arrays) -> tuple[list[str], list[str]]:
    """Prompts and replies, preferred ones first."""
    prompts = [words(row) for row in arrays["prompt_ids"]] * 2
    return prompts, [words(row) for side in ("preferred", "dispreferred") for row in arrays[f"{side}_ids"]]


def test_turning_keeps_lengths_and_padding() -> None:
    h, real = torch.tensor([[[3.0, 0.0], [0.0, 5.0], [1.0, 1.0]]]), torch.tensor([[True, True, False]])
    where = prompts_alone(h.shape[:2], real)
    edited, _ = Turn(torch.tensor([[0.0, 4.0]])).apply(h, where, {})
    torch.testing.assert_close(edited, torch.tensor([[[1.8, 2.4], [0.0, 5.0], [1.0, 1.0]]]))
    same, _ = Turn(torch.zeros(1, 2)).apply(h, where, {})
    assert torch.equal(same, h)


def test_foremost_tokens_are_real_ones() -> None:
    scores, real = torch.tensor([[0.1, -2.0, 3.0, 9.0]]), torch.tensor([[True, True, True, False]])
    assert foremost(scores, real, 2).tolist() == [[True, False, True, False]]
    assert foremost(scores, real, 9).tolist() == [[True, True, True, False]]


def test_scores_add_up_to_the_slope_along_the_embeddings(tiny: LocalSubject) -> None:
    prompts, replies = ["one", "longer two"], [" yes", " no!"]
    scores, real = GrAInS(attribution="gradient").token_scores(tiny, prompts, replies)

    def value(share: float) -> Tensor:
        steering = Intervention({EMBEDDINGS: ScaledLeaf(torch.full((2,), share, dtype=torch.float64))})
        passed = tiny.forward(prompts, replies, intervention=steering)
        return passed.logprobs().detach().gather(1, real.sum(1, keepdim=True) - 1)[:, 0]

    slope = (value(1.01) - value(0.99)) / 0.02  # log-probabilities are float32, so no smaller step
    torch.testing.assert_close(scores.sum(1).double(), slope, rtol=0.01, atol=1e-3)
    shifted, _ = GrAInS(score=AS_RELEASED, attribution="gradient").token_scores(tiny, prompts, replies)
    assert not torch.allclose(shifted, scores, atol=1e-3)


def test_replaced_embeddings_are_those_of_the_chosen_tokens(tiny: LocalSubject) -> None:
    chosen, filler = torch.tensor([[False, True, False]]), torch.full((tiny.layout.width,), 7.0)
    steering = Intervention({EMBEDDINGS: Replace(chosen, filler)})
    gradients = torch.cat(
        [c.states[EMBEDDINGS] for c in tiny.capture_tokens(["abcd"], None, [EMBEDDINGS], intervention=steering)]
    )
    assert (gradients == 7.0).all(1).tolist() == [token == 1 for token in range(len(gradients))]


def test_each_group_has_a_vector_of_its_own(tiny: LocalSubject) -> None:
    pairs = [Pair(f"say {i}", f" {letter}{i}", f" no{i}", group) for group, letter in ("az", "bq") for i in range(3)]
    for vector in ("mean", "pca"):
        method = GrAInS(layer=2, top=2, nodes=4, vector=vector)  # pyright: ignore[reportArgumentType]
        together = method.fit(tiny, FitData(pairs=tuple(pairs)))
        alone = method.fit(tiny, FitData(pairs=tuple(pairs[3:])))
        torch.testing.assert_close(together["vector"][1], alone["vector"][0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(together["vector"][0], together["vector"][1], atol=1e-2)


@pytest.mark.parametrize("attribution", ["gradient", "integrated_gradients"])
def test_scores_agree_with_the_authors(golden: Callable[[str], Arrays], arrays: Arrays, attribution: str) -> None:
    method = GrAInS(attribution=attribution, score=AS_RELEASED)  # pyright: ignore[reportArgumentType]
    scores, _ = method.token_scores(tinylm_subject(golden("tinylm")), *texts_of(arrays))
    name = "vanilla" if attribution == "gradient" else attribution
    preferred, other = scores.double().chunk(2)
    torch.testing.assert_close(preferred, torch.from_numpy(arrays[f"scores_preferred_{name}"]), **CLOSE)
    torch.testing.assert_close(-other, torch.from_numpy(arrays[f"scores_dispreferred_{name}"]), **CLOSE)


def test_replacement_and_vectors_agree_with_the_authors(golden: Callable[[str], Arrays], arrays: Arrays) -> None:
    subject, (prompts, replies) = tinylm_subject(golden("tinylm")), texts_of(arrays)
    top, items = arrays["replaced_positions_pos"].shape[-1], len(arrays["prompt_ids"])
    method = GrAInS(score=AS_RELEASED, top=top, replacement="<pad>", vector="mean")
    scores, real = method.token_scores(subject, prompts, replies)
    scores[items:] *= -1

    for sign, side in ((1, "pos"), (-1, "neg")):
        chosen = foremost(sign * scores, real, top)
        positions = chosen.nonzero()[:, 1].view(2, items, top).transpose(0, 1)
        assert positions.tolist() == arrays[f"replaced_positions_{side}"].tolist()
        for layer in (int(n.split("layer")[1][0]) for n in arrays if n.startswith("v_mean") and n.endswith(side)):
            if layer == subject.layout.num_layers - 1:
                continue  # theirs are states behind the final norm
            differences = method.differences(subject, Site(layer), prompts, replies, chosen)
            expected = [
                arrays[f"hidden_{reply}_response_{side}"] - arrays[f"hidden_{reply}_response_ablated_{side}"]
                for reply in ("pos", "neg")
            ]
            torch.testing.assert_close(differences, torch.from_numpy(np.concatenate(expected)[:, layer + 1]), **CLOSE)
            mean = torch.from_numpy(arrays[f"v_mean_layer{layer}_{side}"])
            torch.testing.assert_close(method.axis(differences), mean, **CLOSE)
            main = GrAInS(vector="pca").axis(differences)
            theirs = torch.from_numpy(arrays[f"v_pca_layer{layer}_{side}"])
            torch.testing.assert_close(main * torch.sign(main @ theirs), theirs, **CLOSE)


def test_the_edit_agrees_with_the_authors(arrays: Arrays) -> None:
    x, vector = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["edit_vec"])
    artifact = {"vector": vector[None], "layer": torch.tensor(0)}
    strength = torch.tensor([float(arrays["edit_alpha"])])
    steered = GrAInS().intervention(artifact, {"group": torch.tensor([0])}, {"strength": strength})
    edited, _ = steered.edits[Site(0)].apply(x, prompts_alone(x.shape[:2]), {})
    torch.testing.assert_close(edited, torch.from_numpy(arrays["y_tensor_output"]), **CLOSE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 4}, "layer must be a whole number from 0 to 3, got 4"),
        ({"top": 0}, "nodes and top must be at least 1, got 20 and 0"),
        ({"score": "first"}, "score must be one of last_token, last_token_after_itself_as_released"),
    ],
)
def test_wrong_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GrAInS(**changes).check(Layout(num_layers=4, width=8, num_heads=1, head_width=8))
