"""HyperSteer: vectors of each row's own, what training brings, and the authors' values."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from tinylm import tinylm_subject, words
from torch import Tensor

from harness.concepts import AddBehindPrefix
from harness.hypernetwork import AddVectorRead, Hypernetwork, NetworkShape
from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject
from harness.subject.scorers import open_subject
from harness.training import Training
from harness.types import Demonstration, Example, FitData, Intervention, Layout, Site, Where
from methods.hypersteer import HyperSteer, VectorLearner

Arrays = Mapping[str, np.ndarray]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
VARIANTS = ("as_released", "with_masks")
HEADS, KEY_HEADS, HEAD_WIDTH, SOFTCAP, QUERY_SCALAR = 4, 2, 8, 5.0, 16
"""Stated beside the values; weights alone do not tell them."""
SMALL = {"layer": 2, "num_heads": 4, "num_key_heads": 2, "head_width": 16}


@pytest.fixture(scope="module")
def tiny() -> LocalSubject:
    return open_subject(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float32")))


@pytest.fixture(scope="module")
def theirs(golden: Callable[[str], Arrays]) -> Arrays:
    return golden("hypersteer")


def network_of(arrays: Arrays) -> Hypernetwork:
    """Their weights in ours, ready to take gradients."""
    weights = {k.removeprefix("net/"): torch.from_numpy(v.copy()) for k, v in arrays.items() if k.startswith("net/")}
    layers = {name.split(".")[1] for name in weights if name.startswith("layers.")}
    shape = NetworkShape(len(layers), HEADS, KEY_HEADS, HEAD_WIDTH, SOFTCAP, QUERY_SCALAR**-0.5)
    return Hypernetwork({name: value.requires_grad_() for name, value in weights.items()}, shape)


def vectors_of(network: Hypernetwork, arrays: Arrays, variant: str, prompt: Tensor) -> Tensor:
    """Their vectors: concepts padded on the left, without any mask or with both."""
    ids, real = torch.from_numpy(arrays["concept_ids"]), torch.from_numpy(arrays["concept_mask"]).bool()
    table = network.weights["embed_tokens.weight"]
    concept = table[ids] * table.shape[1] ** 0.5
    places = torch.arange(ids.shape[1])
    visible = (places <= places[:, None]) & real[:, None]
    there = torch.from_numpy(arrays["prompt_mask"])
    if variant == "as_released":
        visible, there = torch.ones_like(visible), torch.ones_like(there)
    return network.head(network.states(concept, places.expand(ids.shape), visible, prompt, there)[:, -1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_vectors_agree_with_the_authors(variant: str, theirs: Arrays) -> None:
    prompt = torch.from_numpy(theirs["base_hidden"])
    found = vectors_of(network_of(theirs), theirs, variant, prompt)
    torch.testing.assert_close(found.detach(), torch.from_numpy(theirs[f"v_{variant}"]), **CLOSE)


def test_a_vector_reads_its_own_row_alone(theirs: Arrays) -> None:
    network, table = network_of(theirs), torch.from_numpy(theirs["net/embed_tokens.weight"])
    concept = table[torch.from_numpy(theirs["concept_ids"])[:1]]
    prompt, there = torch.from_numpy(theirs["base_hidden"])[:1], torch.from_numpy(theirs["prompt_mask"])[:1]
    length = torch.tensor([concept.shape[1] - 2])
    padded = network.vector(concept, length, prompt, there)
    count = int(there.sum())
    alone = network.vector(concept[:, :-2], length, prompt[:, :count], there[:, :count])
    torch.testing.assert_close(padded, alone)
    assert not torch.allclose(padded, network.vector(concept, length + 1, prompt, there))
    assert not torch.allclose(padded, network.vector(concept, length, prompt[:, 1:], there[:, 1:]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_agree_with_the_authors(
    variant: str, theirs: Arrays, golden: Callable[[str], Arrays]
) -> None:
    subject, layer, network = tinylm_subject(golden("tinylm")), int(theirs["layer"]), network_of(theirs)
    wanted = theirs["labels"] >= 0
    real = theirs["text_attention_mask"].astype(bool)
    rows = list(zip(theirs["text_ids"], wanted, real, strict=True))
    prompts, completions = [words(ids[r & ~w]) for ids, w, r in rows], [words(ids[w]) for ids, w, _ in rows]

    read = subject.forward(prompts, completions, sites=[Site(layer, "block_input")], logits=False)
    base = read.states[Site(layer, "block_input")]
    expected = torch.from_numpy(theirs["base_hidden"])
    prompt = torch.from_numpy(theirs["prompt_mask"])  # what they have behind it was computed from the prompt alone
    torch.testing.assert_close(base[prompt], expected[prompt], **CLOSE)

    with torch.enable_grad():
        edit = AddBehindPrefix(vectors_of(network, theirs, variant, expected))
        passed = subject.forward(prompts, completions, intervention=Intervention({Site(layer): edit}))
        loss = -passed.logprobs().sum() / int(wanted.sum())
        loss.backward()
    torch.testing.assert_close(loss.detach(), torch.from_numpy(theirs[f"lm_loss_{variant}"]), **CLOSE)
    for name, place in (
        ("grad_head_bias", "regression_head.bias"),
        ("grad_cross_o_proj", "layers.1.cross_attention.o_proj.weight"),
    ):
        torch.testing.assert_close(network.weights[place].grad, torch.from_numpy(theirs[f"{name}_{variant}"]), **CLOSE)


def test_the_edit_agrees_with_the_authors(theirs: Arrays) -> None:
    x = torch.from_numpy(theirs["x"])
    where = Where(torch.arange(x.shape[1]).expand(x.shape[:2]), None, torch.full((len(x),), x.shape[1]), True)
    edit = AddVectorRead(torch.from_numpy(theirs["factor"]))
    moved, _ = edit.apply(x, where, {"hypersteer/vector": torch.from_numpy(theirs["v_with_masks"])})
    torch.testing.assert_close(moved, torch.from_numpy(theirs["y"]), **CLOSE)


def shown(concept: str, letter: str, count: int = 6) -> list[Demonstration]:
    return [Demonstration(f"say {i}", f" {letter * 4}", concept, group=concept) for i in range(count)]


def likelihood(subject: LocalSubject, method: HyperSteer, artifact: dict, concept: str, letter: str) -> float:
    condition = method.condition(subject, artifact, [Example("1", "?", concept=concept)])
    steered = method.intervention(artifact, condition, {"strength": torch.ones(1)})
    (found,) = subject.loglikelihood(["say 9"], [f" {letter * 4}"], intervention=steered)
    return float(found.sum())


def test_one_network_learns_several_concepts(tiny: LocalSubject) -> None:
    texts = [*shown("the letter z", "z"), *shown("the letter q", "q")]
    training = Training(epochs=25, batch_size=12, learning_rate=0.003)
    method = HyperSteer(**SMALL, training=training)
    artifact = method.fit(tiny, FitData(demonstrations=tuple(texts)))
    for concept, own, other in (("the letter z", "z", "q"), ("the letter q", "q", "z")):
        assert likelihood(tiny, method, artifact, concept, own) > likelihood(tiny, method, artifact, concept, other) + 1


def test_unwanted_texts_are_not_learnt_from(tiny: LocalSubject) -> None:
    texts = shown("the letter z", "z")
    others = [Demonstration("say 1", " q", wanted=False) for _ in range(3)]
    method = HyperSteer(**SMALL, training=Training(batch_size=4, learning_rate=0.01))
    alone, beside = (method.fit(tiny, FitData(demonstrations=tuple(given))) for given in (texts, texts + others))
    assert all(torch.equal(alone[name], beside[name]) for name in alone)


def test_texts_and_items_without_a_concept_are_refused(tiny: LocalSubject) -> None:
    with pytest.raises(ValueError, match="a text of group 'g' names no concept"):
        VectorLearner(tiny, [Demonstration("a", "b", group="g")], 1, HyperSteer())
    with pytest.raises(ValueError, match="item x names no concept"):
        HyperSteer().condition(tiny, {}, [Example("x", "?")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 4}, "layer must be a whole number from 0 to 3, got 4"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_key_heads": 3}, "num_key_heads must divide num_heads"),
    ],
)
def test_wrong_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HyperSteer(**changes).check(Layout(num_layers=4, width=8, num_heads=1, head_width=8))
