"""FLAS: steps by hand, rows of their own, a trained network on concepts, checkpoints, and the authors' values."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import prompts_alone
from safetensors.torch import save_file
from tinylm import gemma_subject, tinylm_subject, words
from torch import Tensor

from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject
from harness.subject.scorers import open_subject
from harness.training import Part, Training
from harness.types import Demonstration, Example, FitData, Intervention, Layout, Site, Where
from harness.velocity import FieldShape, FlowEdit, VelocityField, time_features
from harness.velocity_weights import first_weights, read_checkpoint
from methods.flas import FLAS, ConceptEncoder, FlowLearner, alikeness

Arrays = Mapping[str, np.ndarray]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
FAMILIES = ("llama", "gemma2", "llama_nosa")
TINY = Layout(num_layers=4, width=64, num_heads=4, head_width=16)


@pytest.fixture(scope="module")
def tiny() -> LocalSubject:
    return open_subject(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float32")))


@pytest.fixture(scope="module")
def flas(golden: Callable[[str], Arrays]) -> Arrays:
    return golden("flas")


@pytest.fixture(scope="module", params=FAMILIES)
def theirs(request: pytest.FixtureRequest, golden: Callable[[str], Arrays], flas: Arrays) -> "Theirs":
    family = request.param
    subject = gemma_subject(flas, "gemma2/lm/") if family == "gemma2" else tinylm_subject(golden("tinylm"))
    return Theirs.of(family, subject, flas)


@dataclasses.dataclass(frozen=True)
class Theirs:
    """The authors' network of one family, in ours, beside the values that theirs gave."""

    family: str
    subject: LocalSubject
    arrays: Arrays
    method: FLAS
    field: VelocityField

    @classmethod
    def of(cls, family: str, subject: LocalSubject, arrays: Arrays) -> "Theirs":
        start = f"{family}/flow/"
        weights = {k.removeprefix(start): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(start)}
        blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
        method = FLAS(
            layer=int(arrays["layer"]),
            num_blocks=len(blocks),
            self_attention="blocks.0.self_attn_gate" in weights,
            training_steps=int(arrays["n_steps"]),
            training_time=(float(arrays["T"]), float(arrays["T"])),
            diversity=float(arrays["div_weight"]),
        )
        shape = FieldShape.of(subject.architecture, method.num_blocks, method.self_attention)
        return cls(family, subject, arrays, method, VelocityField(weights, subject.architecture.frequencies, shape))

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[f"{self.family}/{name}"])

    def encoded(self) -> tuple[Tensor, Tensor]:
        concepts = [words(ids) for ids in self.arrays["concept_input_ids"]]
        norm, limit = self.subject.architecture.final_norm, self.arrays["concept_input_ids"].shape[1]
        return ConceptEncoder(Site(1), norm, self.field.shape, limit).read(self.subject, concepts)

    def edit(self, rows: int, time: float, steps: int) -> FlowEdit:
        states, lengths = self.encoded()
        keys, values = self.field.concept_keys(states[:rows])
        times, counts = torch.full((rows,), time), torch.full((rows,), float(steps))
        return FlowEdit(keys, values, lengths[:rows], times, counts, self.field, steps)

    def padded(self) -> tuple[Tensor, Where]:
        """Given states, padded on the left, and the pass that they stand in."""
        real = torch.from_numpy(self.arrays["left_pad_mask"]).bool()
        where = Where(torch.from_numpy(self.arrays["position_ids"]), real, real.sum(1), prefill=True)
        return torch.from_numpy(self.arrays["h"]), where

    def artifact(self) -> dict[str, Tensor]:
        scalars = {"layer": self.method.layer, "num_steps": int(self.arrays["gen_n_steps"]), "encoder_layers": 2}
        numbers = {name: torch.tensor(value) for name, value in scalars.items()}
        return {**self.field.tensors(), **numbers, "final_norm": self.subject.architecture.final_norm}


def test_time_features_agree_with_the_authors(flas: Arrays) -> None:
    found = time_features(torch.from_numpy(flas["t_list"]))
    torch.testing.assert_close(found, torch.from_numpy(flas["time_features"]), **CLOSE)


def test_concepts_are_encoded_as_the_authors_do(theirs: Theirs) -> None:
    states, lengths = theirs.encoded()
    mask = torch.from_numpy(theirs.arrays["concept_mask"]).bool()
    torch.testing.assert_close(states[mask], theirs.tensor("concept_hidden")[mask], **CLOSE)
    assert lengths.tolist() == mask.sum(1).tolist()


def test_velocities_agree_with_the_authors(theirs: Theirs) -> None:
    h, where = theirs.padded()
    edit = theirs.edit(len(h), 1.0, 1)
    for number, time in enumerate(theirs.arrays["llama/velocity_t_values"].tolist()):
        velocity, _ = theirs.field.velocity(h, torch.full((len(h),), time), edit, 0, where, {})
        torch.testing.assert_close(velocity[where.real], theirs.tensor(f"velocity_t{number}")[where.real], **CLOSE)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_euler_states_agree_with_the_authors(steps: int, theirs: Theirs) -> None:
    h, where = theirs.padded()
    moved, _ = theirs.edit(len(h), 2.0, steps).apply(h, where, {})
    torch.testing.assert_close(moved[where.real], theirs.tensor(f"euler_T2_n{steps}")[where.real], **CLOSE)
    assert where.real is not None
    assert torch.equal(moved[~where.real], h[~where.real])


def texts_of(arrays: Arrays) -> list[Demonstration]:
    """The authors' batch: what is labelled is the completion."""
    made = []
    for ids, labels, concept in zip(arrays["input_ids"], arrays["labels"], arrays["concept_input_ids"], strict=True):
        wanted = labels >= 0
        made.append(Demonstration(words(ids[~wanted]), words(ids[wanted]), words(concept)))
    return made


def test_losses_and_gradients_agree_with_the_authors(theirs: Theirs) -> None:
    learner = FlowLearner(theirs.subject, texts_of(theirs.arrays), Site(int(theirs.arrays["layer"])), theirs.method)
    with torch.no_grad():
        for name, weight in zip(learner.weight_names, learner.weights, strict=True):
            weight.copy_(theirs.field.weights[name])
    rows = tuple(range(len(learner.texts)))
    loss = learner.loss(Part(rows, rows, 0, 0.0, 0))
    loss.backward()

    torch.testing.assert_close(loss.detach(), theirs.tensor("loss"), **CLOSE)
    plain = dataclasses.replace(theirs.method, diversity=0.0)
    learner.method = plain
    torch.testing.assert_close(learner.loss(Part(rows, rows, 0, 0.0, 0)).detach(), theirs.tensor("lm_loss"), **CLOSE)
    by_name = dict(zip(learner.weight_names, learner.weights, strict=True))
    for name, place in (
        ("grad_cross_gate", "blocks.0.cross_gate"),
        ("grad_mlp_gate", "blocks.0.mlp_gate"),
        ("grad_time_bias", "time_embed.mlp.2.bias"),
    ):
        torch.testing.assert_close(by_name[place].grad, theirs.tensor(name), **CLOSE)


def test_steered_tokens_agree_with_the_authors(theirs: Theirs) -> None:
    arrays, tokens = theirs.arrays, theirs.tensor("gen_tokens")
    times = torch.from_numpy(arrays["gen_flow_times"]).float()
    prompts = [words(ids) for ids in arrays["gen_prompts"] for _ in times]
    example = Example("1", "?", concept=words(arrays["gen_concept_ids"]))
    artifact = theirs.artifact()
    condition = theirs.method.condition(theirs.subject, artifact, [example] * len(prompts))
    parameters = {"flow_time": times.repeat(len(arrays["gen_prompts"]))}
    steered = theirs.method.intervention(artifact, condition, parameters)
    found = theirs.subject.generate(prompts, max_new_tokens=tokens.shape[1], intervention=steered)
    # Theirs leave out the first ids of the vocabulary, of which ours write one.
    assert [text.replace("w3 ", "").removesuffix(" w3") for text in found] == [words(row) for row in tokens.tolist()]
